"""The health of a network and of the run that made it: the largest numbers inside, the spectra of its weights, its losses."""
