// What ChampSim calls so that ksmd runs beside its cores and everybody hears of what it does: apply.py puts the calls in.
#ifndef KSM_HOOKS_H
#define KSM_HOOKS_H

#include <cstdint>
#include <string>
#include <vector>

#include "address.h"
#include "chrono.h"

namespace champsim
{
struct environment;
class channel;
} // namespace champsim

namespace shared_memory
{
struct Remapping;
}

class CACHE;
class PageTableWalker;

// A struct, so that one `friend struct ksm_hooks;` opens a class to all of it. Until `connect` was called nothing of it
// does anything.
//
// Environment variables: KSM_VISITS pages ksmd looks at in a batch (100; 0: it does not run), KSM_PERIOD nanoseconds between
// two batches (1000), KSM_DEAF=1 leaves TLBs and accesses under way uninformed, to see that it would be noticed.
struct ksm_hooks {
  // Before the first phase. The contents of the pages of a core lie beside its trace: NAME.pages beside NAME.
  static void connect(champsim::environment& env, const std::vector<std::string>& trace_names);
  // Once a cycle.
  static void operate(champsim::chrono::clock::time_point now);
  // A store has gone to the cache. Always true: it stands at the end of a condition.
  static bool store(uint32_t cpu, champsim::address v_address);
  // An access is about to use a translation.
  static void used(uint32_t cpu, champsim::address v_address, champsim::address address);
  // After the last phase.
  static void report();

private:
  struct core_view; // the caches and TLBs of a core
  static core_view view_of(champsim::environment& env, const std::vector<champsim::channel*>& buses);
  static void retarget_accesses(CACHE& cache, const shared_memory::Remapping& change);
  static void shoot_down(CACHE& tlb, const shared_memory::Remapping& change);
  static void retarget_walks(PageTableWalker& walker, const shared_memory::Remapping& change);
};

#endif
