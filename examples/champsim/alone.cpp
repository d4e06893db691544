// The memory without a simulator: what vmem.cc relies on, held by tests/package/test_champsim.py. Prints "alone".
#include "shared_memory.hpp"

#include <iostream>
#include <set>

using shared_memory::Remapping;
using shared_memory::SharedMemory;

#define EXPECT(condition)                                                                       \
    do {                                                                                        \
        if (!(condition)) {                                                                     \
            std::cerr << __FILE__ << ':' << __LINE__ << ": not so: " #condition << std::endl;   \
            std::exit(1);                                                                       \
        }                                                                                       \
    } while (0)

constexpr std::uint64_t first = 256, number = 5000, page = 4096;

static void settle(SharedMemory &memory) {
    for (int i = 0; i < 40; ++i)
        while (memory.ksmd(1000) == 1000) {
        }
}

// Frames come in the order of the seed, one for each new page, and stay as long as nothing merges.
static void frames_in_order(std::optional<std::uint64_t> seed) {
    std::vector<std::uint64_t> order(number);
    for (std::size_t i = 0; i < number; ++i)
        order[i] = first + i;
    if (seed)
        std::shuffle(order.begin(), order.end(), std::mt19937_64{*seed});
    SharedMemory memory(first, number, seed, 5, page);
    std::mt19937_64 random(5);
    std::map<std::pair<std::uint32_t, std::uint64_t>, std::uint64_t> seen;
    for (int i = 0; i < 3000; ++i) {
        const auto core = static_cast<std::uint32_t>(random() % 2);
        const std::uint64_t vpage = random() >> (random() % 2 ? 12 : 54);   // anywhere in 64 bits, or one of 1024
        const auto [frame, fault] = memory.translate(core, vpage);
        const auto [found, fresh] = seen.try_emplace({core, vpage}, frame);
        EXPECT(fault == fresh);
        EXPECT(found->second == frame);
        EXPECT(!fresh || frame == order[seen.size() - 1]);
        if (i % 100 == 0)
            memory.ksmd(500);
    }
    EXPECT(memory.frames_left() == number - seen.size());
    settle(memory);
    EXPECT(memory.host().counters().pages_sharing == 0 && memory.counts().merges == 0);
}

// Equal pages of two cores come to share a frame, everybody hears of it, and a store gives the page a copy.
static void merging_and_copying() {
    SharedMemory memory(first, number, 1, 5, page);
    std::map<std::pair<std::uint32_t, std::uint64_t>, std::uint64_t> tlb;   // what was told, and what was changed since
    memory.on_remapping = [&](const Remapping &change) {
        auto &entry = tlb.at({change.core, change.vpage});
        EXPECT(entry == change.from && change.from != change.to);
        entry = change.to;
    };
    for (std::uint64_t i = 0; i < 100; ++i) {
        memory.set_content(0, 1000 + i, i % 90);
        memory.set_content(1, (std::uint64_t{1} << 51) + i, i % 90);
    }
    for (std::uint64_t i = 0; i < 100; ++i) {
        tlb[{0, 1000 + i}] = memory.translate(0, 1000 + i).first;
        tlb[{1, (std::uint64_t{1} << 51) + i}] = memory.translate(1, (std::uint64_t{1} << 51) + i).first;
    }
    settle(memory);
    EXPECT(memory.host().counters().pages_shared == 90);
    EXPECT(memory.host().counters().pages_sharing == 110 && memory.counts().merges == 110);
    std::set<std::uint64_t> frames;
    for (const auto &[where, frame] : tlb) {
        EXPECT(memory.frame(where.first, where.second) == frame);
        frames.insert(frame);
    }
    EXPECT(frames.size() == 90);

    EXPECT(!memory.translate(0, 1007).second);
    EXPECT(memory.store(0, 1007) && memory.counts().copies == 1);
    EXPECT((tlb[{0, 1007}] != tlb[{1, (std::uint64_t{1} << 51) + 7}]));
    EXPECT(memory.translate(0, 1007) == std::make_pair(tlb[{0, 1007}], true));    // the fault is paid for once
    EXPECT(memory.translate(0, 1007) == std::make_pair(tlb[{0, 1007}], false));
    EXPECT(!memory.store(0, 1007));                                               // it is its own now
    settle(memory);
    EXPECT(memory.host().counters().pages_sharing == 109);
    for (const auto &[where, frame] : tlb)
        EXPECT(memory.frame(where.first, where.second) == frame);
}

// A page that is stored to before its first use does not have what the file says.
static void stored_before_used() {
    SharedMemory memory(first, number, {}, 4, page);
    for (std::uint64_t i = 0; i < 3; ++i)
        memory.set_content(0, i, 7);
    EXPECT(!memory.store(0, 1));
    EXPECT(!memory.frame(0, 1));
    for (std::uint64_t i = 0; i < 3; ++i)
        memory.translate(0, i);
    settle(memory);
    EXPECT(memory.host().counters().pages_sharing == 1);
    EXPECT(memory.frame(0, 0) == memory.frame(0, 2) && memory.frame(0, 0) != memory.frame(0, 1));
}

static void page_tables() {
    SharedMemory memory(first, number, {}, 5, page);
    EXPECT(memory.tables.shift(1) == 12 && memory.tables.shift(5) == 48 && memory.tables.bits() == 9);
    EXPECT(memory.tables.index(0x5'0200'c040'1000, 1) == 1 && memory.tables.index(0x5'0200'c040'1000, 5) == 5);
    const auto made = memory.tables.entry(0, 0x1234, 1), again = memory.tables.entry(0, 0x1234, 1);
    EXPECT(made.second && !again.second && made.first == again.first);
    EXPECT(made.first == first * page + 0x34 * 8);
    EXPECT(memory.tables.entry(1, 0x1234, 1).second && memory.tables.entry(0, 0x1234, 2).second);
    EXPECT(memory.frames_left() == number - 4);     // every step took a frame

    SharedMemory half(first, number, {}, 5, page / 2);
    const auto one = half.tables.entry(0, 0, 2), other = half.tables.entry(0, std::uint64_t{1} << 40, 2);
    EXPECT(other.first - one.first == page / 2 && half.frames_left() == number - 1);
    EXPECT(half.tables.shift(2) == 20);
    EXPECT(half.tables.entry(0, std::uint64_t{2} << 40, 2).first / page == first + 1);
}

static void frames_twice() {
    SharedMemory memory(first, 10, {}, 4, page);
    for (std::uint64_t i = 0; i < 10; ++i)
        EXPECT(memory.translate(0, i).first == first + i);
    EXPECT(memory.frames_left() == 10);
    try {
        memory.translate(0, 10);
        EXPECT(false);
    } catch (const ksmwalk::error &error) {
        EXPECT(error.code == KW_ENOFRAMES);
    }
}

int main() {
    frames_in_order({});
    frames_in_order(1);
    merging_and_copying();
    stored_before_used();
    page_tables();
    frames_twice();
    std::cout << "alone" << std::endl;
}
