"""The page's templates, style sheet and script; ``certkit.reports`` reads them and nothing else does."""
