"""Embedding in C and C++: the table of the engine's functions behind `ksmwalk.h`, handed out as a capsule."""
