"""What people are shown wherever they are: words for sizes and names, an address space cut down to what is there, HTML."""
