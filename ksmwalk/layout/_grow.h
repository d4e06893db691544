/* Working arrays of C that grow as they are filled. */
#ifndef KSMWALK_GROW_H
#define KSMWALK_GROW_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* The array whose pointer stands at `array`, with room for *room elements of `size` bytes, has room for `need` afterwards: it
   doubles at least. 0: there is no memory, and everything is as before. The caller frees it. */
static inline int kw_grow(void *array, int64_t *room, int64_t need, size_t size) {
    int64_t more = 2 * *room;
    void *old, *moved;
    if (need <= *room)
        return 1;
    if (more < 64)
        more = 64;
    if (more < need)
        more = need;
    memcpy(&old, array, sizeof(old)); /* a pointer of any type: one of void * may not alias it */
    moved = realloc(old, (size_t)more * size);
    if (!moved)
        return 0;
    memcpy(array, &moved, sizeof(moved));
    *room = more;
    return 1;
}

#endif
