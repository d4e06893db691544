// Memory of a simulated machine whose equal pages ksmd merges: address spaces of ksmwalk, one for each core, with frame
// numbers and page-table addresses as a simulator wants them. It knows nothing of ChampSim: vmem.cc joins the two.
#ifndef SHARED_MEMORY_HPP
#define SHARED_MEMORY_HPP
#include "ksmwalk.hpp"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace shared_memory {

constexpr std::uint64_t page_size = 4096;
constexpr std::uint64_t chunk_pages = 1 << 18;              // an address space is mapped a GiB at a time
constexpr std::uint64_t unlike_all = std::uint64_t{1} << 63;  // contents from here on are handed out once each

// What a page table was changed to, which TLBs and accesses under way have to be told.
struct Remapping {
    std::uint32_t core;
    std::uint64_t vpage, from, to;
};

struct Counts {
    std::uint64_t faults = 0, stores = 0, copies = 0, merges = 0;
};

// The frames of the simulated machine in the order in which they are handed out: ascending, or shuffled with a seed.
// Where all are used up they are handed out once more, and said so.
class FrameList {
public:
    FrameList(std::uint64_t first, std::uint64_t number, std::optional<std::uint64_t> seed)
        : first_(first), seed_(seed), frames_(number) {
        if (number == 0)
            throw std::invalid_argument("no frames");
        fill();
    }
    std::size_t left() const { return frames_.size() - next_; }
    std::uint64_t take() {
        const std::uint64_t frame = frames_[next_++];
        if (left() == 0) {
            std::puts("[VMEM] WARNING: all frames are in use, they are handed out a second time");
            fill();
        }
        return frame;
    }

private:
    void fill() {
        for (std::size_t i = 0; i < frames_.size(); ++i)
            frames_[i] = first_ + i;
        if (seed_)
            std::shuffle(frames_.begin(), frames_.end(), std::mt19937_64{*seed_});
        next_ = 0;
    }
    std::uint64_t first_;
    std::optional<std::uint64_t> seed_;
    std::vector<std::uint64_t> frames_;
    std::size_t next_ = 0;
};

// Page tables as a walker asks for them: each table takes its place in a frame when it is first asked for. A step of a
// walk that finds the frame of tables full takes the next one whether it makes a table or not, as ChampSim does: with
// tables of a page, that is one frame a step.
class Tables {
public:
    Tables(FrameList &frames, std::uint64_t table_bytes) : frames_(frames), bytes_(table_bytes) {
        for (std::uint64_t entries = table_bytes / 8; entries > 1; entries /= 2)
            ++bits_;
        if (table_bytes <= 1024 || table_bytes > page_size || (std::uint64_t{8} << bits_) != table_bytes)
            throw std::invalid_argument("a table has 2048 or 4096 bytes");
    }
    std::size_t shift(std::size_t level) const { return 12 + bits_ * (level - 1); }
    std::size_t bits() const { return bits_; }
    std::uint64_t index(std::uint64_t addr, std::size_t level) const {
        return shift(level) > 63 ? 0 : (addr >> shift(level)) & ((std::uint64_t{1} << bits_) - 1);
    }
    // Physical address of the entry that a walk reads next, and whether its table was made for it.
    std::pair<std::uint64_t, bool> entry(std::uint32_t core, std::uint64_t vpage, std::size_t level) {
        if (used_ == 0)
            frame_ = frames_.take();
        const std::uint64_t addr = vpage * page_size;
        const std::uint64_t above = shift(level) > 63 ? 0 : addr >> shift(level);
        const auto [found, made] = tables_.try_emplace({core, level, above}, frame_ * page_size + used_ * bytes_);
        if (made)
            used_ = (used_ + 1) % (page_size / bytes_);
        return {found->second | index(addr, level) << 3, made};
    }

private:
    FrameList &frames_;
    std::uint64_t bytes_;
    std::size_t bits_ = 0;   // of an address that one level takes
    std::uint64_t frame_ = 0, used_ = 0;  // the frame that tables are put into, and how many there are in it
    std::map<std::tuple<std::uint32_t, std::size_t, std::uint64_t>, std::uint64_t> tables_;
};

class SharedMemory {
public:
    SharedMemory(std::uint64_t first_frame, std::uint64_t nr_frames, std::optional<std::uint64_t> seed, std::size_t levels,
                 std::uint64_t table_bytes)
        : list_(first_frame, nr_frames, seed), tables(list_, table_bytes),
          host_(started(nr_frames + 1), 1, levels > 4 ? 5 : 4, THP_NEVER), chunks_((std::uint64_t{1} << (levels > 4 ? 44 : 35)) / chunk_pages), frame_of_(nr_frames + 1, none) {
        host_.record_events();
    }

private:
    FrameList list_;

public:
    Tables tables;
    std::function<void(const Remapping &)> on_remapping = [](const Remapping &) {};

    ksmwalk::Host &host() { return host_; }
    const Counts &counts() const { return counts_; }
    std::size_t frames_left() const { return list_.left(); }

    // Contents of a core's pages, from a file of pairs of uint64: page number, content. Contents are below 2**63, 0 is the
    // empty page. Pages that no file names are unlike all others.
    std::size_t read_contents(std::uint32_t core, const std::string &path) {
        std::ifstream file(path, std::ios::binary);
        std::uint64_t record[2];
        std::size_t n = 0;
        for (; file.read(reinterpret_cast<char *>(record), sizeof record); ++n) {
            if (record[1] >= unlike_all)
                throw std::runtime_error(path + ": a content of 2**63 or more");
            set_content(core, record[0], record[1]);
        }
        if (file.gcount() != 0)
            throw std::runtime_error(path + ": ends in the middle of a record");
        return n;
    }
    void set_content(std::uint32_t core, std::uint64_t vpage, std::uint64_t key) { of(core).contents[vpage] = key; }

    // The frame of a page, and whether a fault was taken: at its first use, and at the first walk after a store to a
    // shared page was given a copy.
    std::pair<std::uint64_t, bool> translate(std::uint32_t core, std::uint64_t vpage) {
        Core &c = of(core);
        const std::uint64_t addr = place(c, vpage);
        ksmwalk::Page page = c.mm.translate(addr);
        bool fault = !c.owed.empty() && c.owed.erase(vpage) != 0;
        if (!page) {
            const auto known = c.contents.find(vpage);
            const bool own = c.written.erase(vpage) != 0 || known == c.contents.end();
            c.mm.write(addr, own ? ++fresh_ : known->second);
            page = c.mm.translate(addr);
            fault = true;
        }
        counts_.faults += fault;
        const std::uint64_t frame = frame_of(page.pfn);
        c.given[vpage] = frame;
        return {frame, fault};
    }

    // The frame a page has now, nothing where it has none. Changes nothing.
    std::optional<std::uint64_t> frame(std::uint32_t core, std::uint64_t vpage) {
        Core &c = of(core);
        const auto chunk = c.chunks.find(vpage / chunk_pages);
        if (chunk == c.chunks.end())
            return {};
        const ksmwalk::Page page = c.mm.translate((chunk->second + vpage % chunk_pages) * page_size);
        return page ? std::optional<std::uint64_t>(frame_of(page.pfn)) : std::nullopt;
    }

    // A store: the page is unlike all others from here on. Whether a shared page was left for a copy.
    bool store(std::uint32_t core, std::uint64_t vpage) {
        Core &c = of(core);
        ++counts_.stores;
        const auto before = frame(core, vpage);
        if (!before) {
            c.written.insert(vpage);
            return false;
        }
        c.mm.write(place(c, vpage), ++fresh_);
        if (!moved(core, vpage))
            return false;
        ++counts_.copies;
        c.owed.insert(vpage);
        return true;
    }

    // One batch of ksmd.
    std::int64_t ksmd(std::int64_t visits) {
        const std::int64_t done = host_.scan(std::min<std::int64_t>(visits, KW_RING / 4));
        const std::int64_t lost = host_.each_event([this](const kw_event &event) {
            if (event.err != 0 || (event.kind != EV_NEW && event.kind != EV_ADD && event.kind != EV_ZERO))
                return;
            const std::uint64_t addr =
                event.kind == EV_ZERO ? static_cast<std::uint64_t>(event.b) : host_.world()->items[event.b].addr;
            for (auto &[core, c] : cores_)
                if (c.mm.number() == event.mm && moved(core, page_at(c, addr)))
                    ++counts_.merges;
        });
        if (lost)
            throw std::logic_error("more events in a batch than are kept");
        return done;
    }

private:
    static constexpr std::uint64_t none = std::numeric_limits<std::uint64_t>::max();

    struct Core {
        ksmwalk::Mm mm;
        std::unordered_map<std::uint64_t, std::uint64_t> contents{}, given{};   // by page: content at first; frame told
        std::unordered_set<std::uint64_t> written{}, owed{};   // stored to before its first use; has a fault to be paid for
        std::unordered_map<std::uint64_t, std::uint64_t> chunks{}, places{};    // chunk -> page in the Mm; and back
        std::uint64_t elsewhere = 0;                                            // chunks not at their own address
    };

    static std::int64_t started(std::uint64_t nr_frames) {
        ksmwalk::start();
        return static_cast<std::int64_t>(nr_frames);
    }

    Core &of(std::uint32_t core) {
        const auto found = cores_.find(core);
        return found != cores_.end() ? found->second : cores_.emplace(core, Core{host_.new_mm()}).first->second;
    }

    // Where a page of the simulated program lies in its Mm: at the same address in the lower half of what a Mm has; all
    // others, whatever their 64 bits, GiB by GiB from its top downwards.
    std::uint64_t place(Core &c, std::uint64_t vpage) {
        const std::uint64_t chunk = vpage / chunk_pages;
        auto found = c.chunks.find(chunk);
        if (found == c.chunks.end()) {
            constexpr std::uint64_t bytes = chunk_pages * page_size;
            const std::uint64_t there = chunk < chunks_ / 2 ? chunk : chunks_ - 2 - c.elsewhere++;
            c.mm.map(bytes, there * bytes);
            c.mm.mergeable(there * bytes, bytes);
            found = c.chunks.emplace(chunk, there * chunk_pages).first;
            c.places.emplace(there, chunk);
        }
        return (found->second + vpage % chunk_pages) * page_size;
    }
    static std::uint64_t page_at(const Core &c, std::uint64_t addr) {
        const std::uint64_t page = addr / page_size;
        return c.places.at(page / chunk_pages) * chunk_pages + page % chunk_pages;
    }

    // A frame of the Host has one frame of the list, from its first use on.
    std::uint64_t frame_of(std::int64_t pfn) {
        std::uint64_t &frame = frame_of_[static_cast<std::size_t>(pfn)];
        if (frame == none)
            frame = list_.take();
        return frame;
    }

    // Tells of a page whose frame is another than was told last.
    bool moved(std::uint32_t core, std::uint64_t vpage) {
        Core &c = of(core);
        const auto now = frame(core, vpage);
        const auto told = c.given.find(vpage);
        if (!now || told == c.given.end() || told->second == *now)
            return false;
        const Remapping change{core, vpage, told->second, *now};
        told->second = *now;
        on_remapping(change);
        return true;
    }

    ksmwalk::Host host_;
    std::uint64_t chunks_;                   // that a Mm can have
    std::vector<std::uint64_t> frame_of_;    // by frame of the Host
    std::map<std::uint32_t, Core> cores_;
    std::uint64_t fresh_ = unlike_all;       // the last content handed out
    Counts counts_;
};

}  // namespace shared_memory
#endif
