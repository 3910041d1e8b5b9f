"""Demo and drill: releases, good and bad, played on the real cluster."""
