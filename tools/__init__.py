"""Build, run and prove everything on one machine; the product itself does not need this package."""
