"""What /proc says of live processes: maps, pagemap, frames; nothing is written, no absent page is touched."""
