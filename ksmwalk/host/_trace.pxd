# Traces applied to a Host, for those who `cimport ksmwalk.host._trace`. Same rules as _calls.pxd.
from libc.stdint cimport int32_t, int64_t

from ksmwalk.layout._layout cimport *


cdef struct Player:
    int32_t *mms           # [nr_ids] number in the Host of each process of the trace, 0: not alive
    int64_t nr_ids
    int32_t *changes       # [max_changes][2] who came (id, number) and who went (id, -number), in this order
    int64_t nr_changes
    int64_t max_changes
    int64_t *errors        # [4096] events that failed by errno, passed over; NULL: the first one ends the run
    bint map_missing       # a load or store where no area is maps 2 MiB around it first

cdef enum:
    MAX_IDS = 1 << 22      # processes of a trace are numbered below it, as Linux numbers its own (PID_MAX_LIMIT)

cdef int64_t trace_apply(kw_world *w, const kw_trace_event *events, int64_t n, Player *player, int *code) noexcept nogil
    # Do events[0..n) in this order. The number done (or passed over); *code: KW_OK, or why it stopped there: -errno and
    # the codes of _layout.h; KW_EFULL: no room in `changes`, or a process beyond nr_ids: make some and go on with the
    # rest. What an event does is what the door of the same name does (mmap at a fixed place, of private memory), but
    # that a load or store looks at the entry first, as a processor does: where that lets it through, no area is asked.
