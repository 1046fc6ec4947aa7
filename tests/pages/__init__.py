"""The pages (README, the guides, the formats): their programs, transcripts, links, commands and pictures."""
