"""The serving application: parse, predict, journal, answer."""
