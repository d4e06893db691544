// See ksm_hooks.h. First the header that includes Python.h, which wants to be the first of all.
#include "shared_memory.hpp"

#include "ksm_hooks.h"

#include <cstdlib>
#include <fmt/core.h>

#include "environment.h"
#include "vmem.h"

struct ksm_hooks::core_view {
  std::vector<CACHE*> first_level, tlbs;
  std::vector<PageTableWalker*> walkers;
};

namespace
{
shared_memory::SharedMemory* memory = nullptr;
int64_t visits = 0;
champsim::chrono::clock::duration period{};
champsim::chrono::clock::time_point due{};
uint64_t uses = 0, stale = 0, dropped = 0, retargeted = 0;

int64_t setting(const char* name, int64_t otherwise)
{
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0' ? std::strtoll(value, nullptr, 10) : otherwise;
}

template <typename T, typename U>
bool contains(const T& range, const U& value)
{
  return std::find(std::begin(range), std::end(range), value) != std::end(range);
}

bool of_page(champsim::address address, uint64_t vpage) { return champsim::page_number{address}.to<uint64_t>() == vpage; }

champsim::address frame_address(uint64_t frame) { return champsim::address{champsim::page_number{frame}}; }

// Answers with a translation that are on their way up.
template <typename R>
void retarget_answers(R& returned, const shared_memory::Remapping& change)
{
  for (auto& answer : returned) {
    if (of_page(answer.v_address, change.vpage) && of_page(answer.data, change.from)) {
      answer.data = frame_address(change.to);
      ++retargeted;
    }
  }
}
} // namespace

// The caches that a core's buses lead to, and below them TLB by TLB down to the walker.
ksm_hooks::core_view ksm_hooks::view_of(champsim::environment& env, const std::vector<champsim::channel*>& buses)
{
  core_view view;
  auto below = [&env](CACHE& cache, const auto& channels) {
    return std::any_of(std::begin(channels), std::end(channels), [&cache](auto* channel) { return contains(cache.upper_levels, channel); });
  };
  std::vector<champsim::channel*> next{};
  for (CACHE& cache : env.cache_view()) {
    if (below(cache, buses)) {
      view.first_level.push_back(&cache);
      next.push_back(cache.lower_translate);
    }
  }
  while (!next.empty()) {
    const auto channels = std::exchange(next, {});
    for (CACHE& cache : env.cache_view()) {
      if (below(cache, channels) && !contains(view.tlbs, &cache)) {
        view.tlbs.push_back(&cache);
        next.push_back(cache.lower_level);
      }
    }
    for (PageTableWalker& walker : env.ptw_view()) {
      for (auto* channel : channels) {
        if (contains(walker.upper_levels, channel) && !contains(view.walkers, &walker))
          view.walkers.push_back(&walker);
      }
    }
  }
  return view;
}

void ksm_hooks::connect(champsim::environment& env, const std::vector<std::string>& trace_names)
{
  for (PageTableWalker& walker : env.ptw_view())
    memory = &walker.vmem->memory();
  if (memory == nullptr)
    return;
  visits = setting("KSM_VISITS", 100);
  period = champsim::chrono::nanoseconds{setting("KSM_PERIOD", 1000)};
  due = champsim::chrono::clock::time_point{} + period;
  for (std::size_t i = 0; i < std::size(trace_names); ++i) {
    const auto n = memory->read_contents(static_cast<uint32_t>(i), trace_names.at(i) + ".pages");
    fmt::print("[KSM] CPU {} contents of {} pages\n", i, n);
  }
  if (setting("KSM_DEAF", 0) != 0)
    return;
  auto views = std::make_shared<std::vector<core_view>>();
  for (O3_CPU& cpu : env.cpu_view())
    views->push_back(view_of(env, {cpu.L1I_bus.lower_level, cpu.L1D_bus.lower_level}));
  memory->on_remapping = [views](const auto& change) {
    for (auto* cache : views->at(change.core).first_level)
      retarget_accesses(*cache, change);
    for (auto* tlb : views->at(change.core).tlbs)
      shoot_down(*tlb, change);
    for (auto* walker : views->at(change.core).walkers)
      retarget_walks(*walker, change);
  };
}

// An access that has its translation but has not looked into its cache yet goes on with the new frame: a processor has
// such accesses finished, or begun anew, when it answers a shootdown.
void ksm_hooks::retarget_accesses(CACHE& cache, const shared_memory::Remapping& change)
{
  for (auto queue : {std::ref(cache.inflight_tag_check), std::ref(cache.translation_stash)}) {
    for (auto& access : queue.get()) {
      if (access.is_translated && access.v_address != champsim::address{} && of_page(access.v_address, change.vpage)
          && of_page(access.address, change.from)) {
        access.address = champsim::address{champsim::splice(champsim::page_number{change.to}, champsim::page_offset{access.v_address})};
        ++retargeted;
      }
    }
  }
  retarget_answers(cache.lower_translate->returned, change);
}

void ksm_hooks::shoot_down(CACHE& tlb, const shared_memory::Remapping& change)
{
  for (auto& entry : tlb.block) {
    if (entry.valid && of_page(entry.address, change.vpage)) {
      entry.valid = false;
      ++dropped;
    }
  }
  for (auto queue : {std::ref(tlb.MSHR), std::ref(tlb.inflight_writes)}) {
    for (auto& miss : queue.get()) {
      if (!miss.data_promise.has_unknown_readiness() && of_page(miss.address, change.vpage)) {
        miss.data_promise->data = frame_address(change.to);
        ++retargeted;
      }
    }
  }
  retarget_answers(tlb.lower_level->returned, change);
}

void ksm_hooks::retarget_walks(PageTableWalker& walker, const shared_memory::Remapping& change)
{
  for (auto& walk : walker.completed) {
    if (walk.cpu == change.core && of_page(walk.v_address, change.vpage)) {
      *walk.data = frame_address(change.to);
      ++retargeted;
    }
  }
}

void ksm_hooks::operate(champsim::chrono::clock::time_point now)
{
  if (memory == nullptr || visits <= 0 || now < due)
    return;
  due = now + period;
  memory->ksmd(visits);
}

bool ksm_hooks::store(uint32_t cpu, champsim::address v_address)
{
  if (memory != nullptr)
    memory->store(cpu, champsim::page_number{v_address}.to<uint64_t>());
  return true;
}

void ksm_hooks::used(uint32_t cpu, champsim::address v_address, champsim::address address)
{
  if (memory == nullptr || v_address == champsim::address{}) // a prefetch of a physical address has none
    return;
  ++uses;
  const auto frame = memory->frame(cpu, champsim::page_number{v_address}.to<uint64_t>());
  stale += frame.has_value() && *frame != champsim::page_number{address}.to<uint64_t>();
}

void ksm_hooks::report()
{
  if (memory == nullptr)
    return;
  const auto ksm = memory->host().counters();
  const auto& counts = memory->counts();
  fmt::print("\n[KSM] pages_shared: {} pages_sharing: {} pages_unshared: {} pages_volatile: {} full_scans: {} pages_scanned: {}\n", ksm.pages_shared,
             ksm.pages_sharing, ksm.pages_unshared, ksm.pages_volatile, ksm.full_scans, ksm.pages_scanned);
  fmt::print("[KSM] stores: {} faults: {} merged: {} copied: {}\n", counts.stores, counts.faults, counts.merges, counts.copies);
  fmt::print("[KSM] TLB entries dropped: {} under way retargeted: {} translations used: {} stale: {}\n", dropped, retargeted, uses, stale);
  if (stale != 0)
    fmt::print(stderr, "[KSM] ERROR: {} stale translations were used\n", stale);
}
