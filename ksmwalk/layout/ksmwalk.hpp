// ksmwalk for C++17: Host, Mm, walks, scans and counters as objects that clean up behind themselves, on ksmwalk.h.
//
//     #include "ksmwalk.hpp"                      // before any header of the standard library: it includes Python.h
//     ksmwalk::start();                           // in a program of one's own; in a module: kw_import()
//     ksmwalk::Host host(1 << 20);
//     ksmwalk::Mm mm = host.new_mm();
//     uint64_t addr = mm.map(1 << 20);
//     mm.mergeable(addr, 1 << 20);
//     mm.write(addr, 42);
//     host.full_scan();
//
// Everything is inline and holds no state but a reference to the Host; what each call does and answers is said in
// ksmwalk.h. A negative answer is thrown as ksmwalk::error. No call but the construction of a Host, `tunable` and the end
// of the last reference to a Host calls Python.
#ifndef KSMWALK_HPP
#define KSMWALK_HPP
#include "ksmwalk.h"

#include <cstdint>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace ksmwalk {

// A negative answer: its code (KW_* or -errno) and its text.
class error : public std::runtime_error {
public:
    error(std::int64_t answer, const std::string &what) : std::runtime_error(what), code(answer) {}
    const std::int64_t code;
};

// Passes an answer through; throws what a negative one stands for.
inline std::int64_t checked(std::int64_t answer, const char *what) {
    if (KW_UNLIKELY(answer < 0))
        throw error(answer, std::string(what) + ": " + kw->code_text(answer));
    return answer;
}

#ifndef KSMWALK_NO_PYTHON
// kw_start that throws.
inline void start(const char *python = nullptr) {
    if (kw_start(python) != 0)
        throw std::runtime_error("ksmwalk: no Python with the package ksmwalk to start");
}
#endif

// What an address is mapped to.
struct Page {
    std::int64_t pfn = KW_NONE;   // 4 KiB frame, KW_NONE: nothing
    std::uint64_t entry = 0;      // raw, PTE_*
    int level = 0;                // 1 pte, 2 pmd, 3 pud
    explicit operator bool() const { return pfn >= 0; }
    bool writable() const { return (entry & PTE_RW) != 0; }
};

namespace detail {
template <class V, class = void> struct has_pgd : std::false_type {};
template <class V, class = void> struct has_p4d : std::false_type {};
template <class V, class = void> struct has_pud : std::false_type {};
template <class V, class = void> struct has_pmd : std::false_type {};
template <class V, class = void> struct has_pte : std::false_type {};
template <class V, class = void> struct has_hole : std::false_type {};
template <class V> struct has_pgd<V, std::void_t<decltype(&V::pgd)>> : std::true_type {};
template <class V> struct has_p4d<V, std::void_t<decltype(&V::p4d)>> : std::true_type {};
template <class V> struct has_pud<V, std::void_t<decltype(&V::pud)>> : std::true_type {};
template <class V> struct has_pmd<V, std::void_t<decltype(&V::pmd)>> : std::true_type {};
template <class V> struct has_pte<V, std::void_t<decltype(&V::pte)>> : std::true_type {};
template <class V> struct has_hole<V, std::void_t<decltype(&V::hole)>> : std::true_type {};

// Calls a visitor from C: what it throws is put aside and ends the walk.
template <class V> struct Visit {
    V &visitor;
    std::exception_ptr thrown;

    template <class F> static int guarded(kw_walk_state *walk, F call) {
        auto *self = static_cast<Visit *>(walk->user);
        try {
            return call(self->visitor);
        } catch (...) {
            self->thrown = std::current_exception();
            return 1;
        }
    }
    static int pgd(std::uint64_t *e, std::uint64_t a, std::uint64_t n, kw_walk_state *w) {
        return guarded(w, [&](auto &v) { return v.pgd(*e, a, n, *w); });
    }
    static int p4d(std::uint64_t *e, std::uint64_t a, std::uint64_t n, kw_walk_state *w) {
        return guarded(w, [&](auto &v) { return v.p4d(*e, a, n, *w); });
    }
    static int pud(std::uint64_t *e, std::uint64_t a, std::uint64_t n, kw_walk_state *w) {
        return guarded(w, [&](auto &v) { return v.pud(*e, a, n, *w); });
    }
    static int pmd(std::uint64_t *e, std::uint64_t a, std::uint64_t n, kw_walk_state *w) {
        return guarded(w, [&](auto &v) { return v.pmd(*e, a, n, *w); });
    }
    static int pte(std::uint64_t *e, std::uint64_t a, std::uint64_t n, kw_walk_state *w) {
        return guarded(w, [&](auto &v) { return v.pte(*e, a, n, *w); });
    }
    static int hole(std::uint64_t a, std::uint64_t n, int depth, kw_walk_state *w) {
        return guarded(w, [&](auto &v) { return v.hole(a, n, depth, *w); });
    }
};
}  // namespace detail

using HostReference = std::shared_ptr<kw_host>;

// An address space: exits with the object. Keeps its Host.
class Mm {
public:
    Mm(HostReference host, std::int32_t number) : host_(std::move(host)), w_(kw->host_world(host_.get())), number_(number) {}
    Mm(Mm &&other) noexcept
        : host_(std::move(other.host_)), w_(std::exchange(other.w_, nullptr)), number_(std::exchange(other.number_, 0)) {}
    Mm &operator=(Mm &&other) noexcept {
        std::swap(host_, other.host_);
        std::swap(w_, other.w_);
        std::swap(number_, other.number_);
        return *this;
    }
    ~Mm() {
        if (number_ > 0)
            kw->mm_exit(w_, number_);
    }

    std::int32_t number() const { return number_; }

    // Private anonymous memory; its address.
    std::uint64_t map(std::uint64_t length, std::uint64_t addr = KW_ANYWHERE, std::uint64_t flags = VM_READ | VM_WRITE) {
        return static_cast<std::uint64_t>(checked(kw->mm_map(w_, number_, addr, length, flags), "map"));
    }
    void unmap(std::uint64_t addr, std::uint64_t length) { checked(kw->mm_unmap(w_, number_, addr, length), "unmap"); }
    void protect(std::uint64_t addr, std::uint64_t length, std::uint64_t prot) {
        checked(kw->mm_protect(w_, number_, addr, length, prot), "protect");
    }
    void advise(std::uint64_t addr, std::uint64_t length, int advice) {
        checked(kw->mm_advise(w_, number_, addr, length, advice), "advise");
    }
    void mergeable(std::uint64_t addr, std::uint64_t length) { advise(addr, length, 12); }
    void unmergeable(std::uint64_t addr, std::uint64_t length) { advise(addr, length, 13); }
    void merge_any(bool on = true) { checked(kw->mm_merge_any(w_, number_, on), "merge_any"); }
    Mm fork() { return Mm(host_, static_cast<std::int32_t>(checked(kw->mm_fork(w_, number_), "fork"))); }

    // A store that leaves the page at addr with content key.
    void write(std::uint64_t addr, std::uint64_t key) {
        if (int code = kw->write(w_, number_, addr, key); KW_UNLIKELY(code < 0))
            checked(code, "write");
    }
    // Stores into n pages in a row.
    void write(std::uint64_t addr, const std::uint64_t *keys, std::int64_t n) {
        int code = 0;
        kw->write_range(w_, number_, addr, n, keys, 1, &code);
        checked(code, "write");
    }
    // The frame a load sees, the fault it takes included.
    std::int64_t read(std::uint64_t addr) { return checked(kw->read(w_, number_, addr), "read"); }
    // What addr is mapped to, without a fault.
    Page translate(std::uint64_t addr) const {
        Page page;
        page.pfn = kw->translate(w_, number_, addr, &page.entry, &page.level);
        if (KW_UNLIKELY(page.pfn < KW_NONE))
            checked(page.pfn, "translate");
        return page;
    }
    // Whether the page at addr is one that KSM shares (its zero page too).
    bool shared(std::uint64_t addr) const {
        const Page page = translate(addr);
        return page && (w_->f_flags[page.pfn] & FRAME_KSM || (page.pfn == 0 && (page.entry & PTE_SPECIAL)));
    }

    // Calls what a visitor has of pgd, p4d, pud, pmd, pte(uint64_t &entry, addr, next, kw_walk_state &) and
    // hole(addr, next, depth, kw_walk_state &) for [start, end), vma by vma or as the tables are. They return 0 to go on;
    // more than 0 ends the walk and is its answer, less is thrown as an error of that number. What they throw comes through.
    template <class V> int walk(std::uint64_t start, std::uint64_t end, V &&visitor, bool vmas = true) const {
        using T = std::remove_reference_t<V>;
        detail::Visit<T> visit{visitor, nullptr};
        kw_walk_ops ops{};
        using Call = detail::Visit<T>;
        if constexpr (detail::has_pgd<T>::value) ops.pgd_entry = Call::pgd;
        if constexpr (detail::has_p4d<T>::value) ops.p4d_entry = Call::p4d;
        if constexpr (detail::has_pud<T>::value) ops.pud_entry = Call::pud;
        if constexpr (detail::has_pmd<T>::value) ops.pmd_entry = Call::pmd;
        if constexpr (detail::has_pte<T>::value) ops.pte_entry = Call::pte;
        if constexpr (detail::has_hole<T>::value) ops.pte_hole = Call::hole;
        const int answer = kw->walk(w_, number_, start, end, &ops, &visit, vmas);
        if (visit.thrown)
            std::rethrow_exception(visit.thrown);
        return static_cast<int>(checked(answer, "walk"));
    }
    // All mappings of [start, end) in ascending order.
    std::vector<kw_mapping> mappings(std::uint64_t start, std::uint64_t end, bool runs = false) const {
        std::vector<kw_mapping> out(512);
        for (;;) {
            const auto room = static_cast<std::int64_t>(out.size());
            const std::int64_t n = kw->mappings(w_, number_, start, end, runs, out.data(), room);
            if (n != KW_EFULL) {
                out.resize(static_cast<std::size_t>(checked(n, "mappings")));
                return out;
            }
            out.resize(4 * out.size());
        }
    }

private:
    HostReference host_;
    kw_world *w_;
    std::int32_t number_;
};

// A machine: frames, address spaces, KSM. A copy is another reference to the same one.
class Host {
public:
    explicit Host(std::int64_t nr_frames, int nr_nodes = 1, int levels = 4, int thp = THP_MADVISE) {
        if (kw == nullptr)
            throw std::logic_error("ksmwalk: start() comes first, or kw_import() in a module");
        kw_host *made = nullptr;
        const int code = kw->host_new(nr_frames, nr_nodes, levels, thp, &made);
        take(code, made);
    }
    // The Host that a PyObject * is.
    static Host of(void *object) {
        kw_host *host = nullptr;
        const int code = kw->host_of(object, &host);
        return Host(code, host);
    }

    kw_host *get() const { return host_.get(); }
    kw_world *world() const { return w_; }
    Mm new_mm(int nid = 0) { return Mm(host_, static_cast<std::int32_t>(checked(kw->mm_new(w_, nid), "new_mm"))); }

    // One batch of ksmd, at most n visits; how many there were.
    std::int64_t scan(std::int64_t n) {
        int code = 0;
        const std::int64_t done = kw->scan(w_, n, &code);
        if (KW_UNLIKELY(code < 0))
            checked(code, "scan");
        return done;
    }
    // On to the end of the full scan ksmd is in; how many visits. 0 where nobody is on its list.
    std::int64_t full_scan() {
        const std::uint64_t before = w_->cursor->seqnr;
        std::int64_t done = 0;
        while (w_->mms[0].slot_next && w_->cursor->seqnr == before)
            done += scan(INT64_MAX);
        return done;
    }
    kw_counters counters() const {
        kw_counters c;
        kw->counters(w_, &c);
        return c;
    }
    // Writes a file of /sys/kernel/mm/ksm.
    void tunable(const char *name, std::int64_t value) {
        if (const int code = kw->host_tunable(get(), name, value); code < 0)
            throw error(code, std::string(name) + ": " + kw->host_error());
    }

    // The trace events, once switched on: calls f(const kw_event &) for those since the last call, oldest first. How many
    // were lost because more than KW_RING came between two calls.
    void record_events(bool on = true) {
        w_->ksm->events_on = on;
        taken_ = *w_->event_pos;
    }
    template <class F> std::int64_t each_event(F &&f) {
        const std::int64_t written = *w_->event_pos;
        std::int64_t lost = written - taken_ - KW_RING;
        lost = lost > 0 ? lost : 0;
        for (std::int64_t i = taken_ + lost; i < written; ++i)
            f(static_cast<const kw_event &>(w_->events[i % KW_RING]));
        taken_ = written;
        return lost;
    }

private:
    Host(int code, kw_host *host) { take(code, host); }
    void take(int code, kw_host *host) {
        if (code < 0)
            throw error(code, std::string("Host: ") + kw->host_error());
        host_ = HostReference(host, [](kw_host *h) { kw->host_free(h); });
        w_ = kw->host_world(host);
    }
    HostReference host_;
    kw_world *w_ = nullptr;
    std::int64_t taken_ = 0;
};

#ifndef KSMWALK_NO_PYTHON
// For a function that Python calls: while it is there, other Python threads run, and those that call this Host get a
// RuntimeError.
class Unlocked {
public:
    explicit Unlocked(const Host &host) : host_(host) {
        if (const int code = kw->host_enter(host_.get()); code < 0)
            throw error(code, kw->host_error());
        state_ = PyEval_SaveThread();
    }
    ~Unlocked() {
        PyEval_RestoreThread(state_);
        kw->host_leave(host_.get());
    }
    Unlocked(const Unlocked &) = delete;
    Unlocked &operator=(const Unlocked &) = delete;

private:
    Host host_;
    PyThreadState *state_;
};
#endif

}  // namespace ksmwalk
#endif
