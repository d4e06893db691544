# Red-black trees over index-linked records: the textbook insertion and deletion (Cormen et al., chapter 13), because
# the shape of a tree decides what a search meets, and the kernel's trees have the textbook's shape.
#
# A tree's records live in any array of structs that holds, at one place, the four fields of kw_rb (left, right, parent,
# colour in bit 0 of the byte after them). `base` points at the kw_rb of record 0, `stride` is the size of a record;
# both are constants at the call, so the compiler makes one specialised copy per kind of tree. Index 0 is "none".
from libc.stdint cimport int32_t, int64_t

from ksmwalk.layout._layout cimport kw_check, kw_rb


cdef enum:
    RB_RED = 0
    RB_BLACK = 1


cdef inline kw_rb *rb_at(char *base, int64_t stride, int32_t i) noexcept nogil:
    kw_check(i >= 0)
    return <kw_rb *> (base + stride * i)


cdef inline int rb_colour(char *base, int64_t stride, int32_t i) noexcept nogil:
    # Leaves are black.
    return RB_BLACK if i == 0 else rb_at(base, stride, i).colour & 1


cdef inline void rb_paint(char *base, int64_t stride, int32_t i, int colour) noexcept nogil:
    cdef kw_rb *x = rb_at(base, stride, i)
    x.colour = (x.colour & 0xFE) | colour


cdef inline void rb_hang(char *base, int64_t stride, int32_t *root, int32_t parent, int32_t old, int32_t new) noexcept nogil:
    # `new` takes the place of the child `old` under `parent`.
    if parent == 0:
        root[0] = new
    elif rb_at(base, stride, parent).left == old:
        rb_at(base, stride, parent).left = new
    else:
        rb_at(base, stride, parent).right = new


cdef inline void rb_rotate(char *base, int64_t stride, int32_t *root, int32_t x, bint left) noexcept nogil:
    # x goes down to the left (or right), its other child comes up into its place.
    cdef kw_rb *px = rb_at(base, stride, x)
    cdef int32_t y = px.right if left else px.left
    cdef kw_rb *py = rb_at(base, stride, y)
    cdef int32_t middle = py.left if left else py.right
    if left:
        px.right = middle
        py.left = x
    else:
        px.left = middle
        py.right = x
    if middle != 0:
        rb_at(base, stride, middle).parent = x
    py.parent = px.parent
    rb_hang(base, stride, root, px.parent, x, y)
    px.parent = y


cdef inline void rb_insert(char *base, int64_t stride, int32_t *root, int32_t parent, bint right, int32_t z) noexcept nogil:
    # Hang z as a leaf under `parent` (0: the tree is empty) on the side where the search ended, and restore the colours.
    cdef kw_rb *pz = rb_at(base, stride, z)
    cdef kw_rb *pp
    cdef int32_t grand, uncle
    cdef bint side
    pz.left = 0
    pz.right = 0
    pz.parent = parent
    rb_paint(base, stride, z, RB_RED)
    if parent == 0:
        root[0] = z
    elif right:
        rb_at(base, stride, parent).right = z
    else:
        rb_at(base, stride, parent).left = z
    while True:
        parent = rb_at(base, stride, z).parent
        if parent == 0 or rb_colour(base, stride, parent) == RB_BLACK:
            break
        grand = rb_at(base, stride, parent).parent      # there is one: a red record is not the root
        side = rb_at(base, stride, grand).left == parent  # the parent is a left child
        uncle = rb_at(base, stride, grand).right if side else rb_at(base, stride, grand).left
        if rb_colour(base, stride, uncle) == RB_RED:
            rb_paint(base, stride, parent, RB_BLACK)
            rb_paint(base, stride, uncle, RB_BLACK)
            rb_paint(base, stride, grand, RB_RED)
            z = grand
            continue
        pp = rb_at(base, stride, parent)
        if z == (pp.right if side else pp.left):
            z = parent
            rb_rotate(base, stride, root, z, side)
            parent = rb_at(base, stride, z).parent
        rb_paint(base, stride, parent, RB_BLACK)
        rb_paint(base, stride, grand, RB_RED)
        rb_rotate(base, stride, root, grand, not side)
        break
    rb_paint(base, stride, root[0], RB_BLACK)


cdef inline void rb_erase(char *base, int64_t stride, int32_t *root, int32_t z) noexcept nogil:
    # Take z out; with two children the next higher record takes its place and colour.
    cdef kw_rb *pz = rb_at(base, stride, z)
    cdef kw_rb *py
    cdef kw_rb *pw
    cdef int32_t y, x, parent, w
    cdef int removed = pz.colour & 1
    cdef bint side
    if pz.left == 0 or pz.right == 0:
        x = pz.right if pz.left == 0 else pz.left
        parent = pz.parent
        rb_hang(base, stride, root, parent, z, x)
        if x != 0:
            rb_at(base, stride, x).parent = parent
    else:
        y = pz.right
        while rb_at(base, stride, y).left != 0:
            y = rb_at(base, stride, y).left
        py = rb_at(base, stride, y)
        removed = py.colour & 1
        x = py.right
        if py.parent == z:
            parent = y
        else:
            parent = py.parent
            rb_at(base, stride, parent).left = x
            if x != 0:
                rb_at(base, stride, x).parent = parent
            py.right = pz.right
            rb_at(base, stride, py.right).parent = y
        rb_hang(base, stride, root, pz.parent, z, y)
        py.parent = pz.parent
        py.left = pz.left
        rb_at(base, stride, py.left).parent = y
        rb_paint(base, stride, y, pz.colour & 1)
    if removed == RB_RED:
        return
    while x != root[0] and rb_colour(base, stride, x) == RB_BLACK:
        side = rb_at(base, stride, parent).left == x    # x, perhaps a leaf, is a left child
        w = rb_at(base, stride, parent).right if side else rb_at(base, stride, parent).left
        if rb_colour(base, stride, w) == RB_RED:
            rb_paint(base, stride, w, RB_BLACK)
            rb_paint(base, stride, parent, RB_RED)
            rb_rotate(base, stride, root, parent, side)
            w = rb_at(base, stride, parent).right if side else rb_at(base, stride, parent).left
        pw = rb_at(base, stride, w)
        if rb_colour(base, stride, pw.left) == RB_BLACK and rb_colour(base, stride, pw.right) == RB_BLACK:
            rb_paint(base, stride, w, RB_RED)
            x = parent
            parent = rb_at(base, stride, x).parent
            continue
        if rb_colour(base, stride, pw.right if side else pw.left) == RB_BLACK:
            rb_paint(base, stride, pw.left if side else pw.right, RB_BLACK)
            rb_paint(base, stride, w, RB_RED)
            rb_rotate(base, stride, root, w, not side)
            w = rb_at(base, stride, parent).right if side else rb_at(base, stride, parent).left
            pw = rb_at(base, stride, w)
        rb_paint(base, stride, w, rb_colour(base, stride, parent))
        rb_paint(base, stride, parent, RB_BLACK)
        rb_paint(base, stride, pw.right if side else pw.left, RB_BLACK)
        rb_rotate(base, stride, root, parent, side)
        x = root[0]
        break
    if x != 0:
        rb_paint(base, stride, x, RB_BLACK)


cdef inline void rb_replace(char *base, int64_t stride, int32_t *root, int32_t old, int32_t new) noexcept nogil:
    # `new` takes old's place in the tree: same links, same colour.
    cdef kw_rb *po = rb_at(base, stride, old)
    cdef kw_rb *pn = rb_at(base, stride, new)
    pn.left = po.left
    pn.right = po.right
    pn.parent = po.parent
    rb_paint(base, stride, new, po.colour & 1)
    rb_hang(base, stride, root, po.parent, old, new)
    if po.left != 0:
        rb_at(base, stride, po.left).parent = new
    if po.right != 0:
        rb_at(base, stride, po.right).parent = new
