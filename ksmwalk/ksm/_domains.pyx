"""Domains: which address spaces may share pages.

The contract stands in `_domains.pxd`.
"""
from libc.stdint cimport int32_t

from ksmwalk._core cimport World, enter, leave
from ksmwalk.ksm._engine cimport leave_tree
from ksmwalk.ksm._unmerge cimport unmerge_mm, unmerging
from ksmwalk.layout._layout cimport *


cdef int set_domain(kw_world *w, int32_t mm, int32_t domain) noexcept nogil:
    cdef int32_t item
    cdef int err
    if w.mms[mm].domain == domain:
        return KW_OK
    err = unmerge_mm(w, mm, unmerging(w), w.mms[mm].cpu)
    if err < 0:
        return err
    # Out of the trees while the mm still says which ones those are.
    item = w.mms[mm].rmap_list
    while item:
        leave_tree(w, item)
        item = w.items[item].next
    w.mms[mm].domain = domain
    w.ctl.trees_used = max(w.ctl.trees_used, (domain + 1) * w.ctl.nr_nodes)
    return KW_OK


# ------------------------------------------------------------------ what Python sees

def py_set_domain(World world not None, int mm, int domain):
    """KW_OK or a negative KW_* code."""
    cdef int err
    enter(world)
    with nogil:
        err = set_domain(&world.w, mm, domain)
    leave(world)
    return err
