// The virtual memory of ChampSim with pages that ksmd merges: takes the place of ChampSim's inc/vmem.h, with the members
// that its other files and its tests use. The memory itself is in shared_memory.hpp.
#ifndef VMEM_H
#define VMEM_H

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "address.h"
#include "champsim.h"
#include "chrono.h"

class MEMORY_CONTROLLER;

namespace shared_memory
{
class SharedMemory;
}

using pte_entry = champsim::data::size<long long, std::ratio<8>>;

class VirtualMemory
{
  std::unique_ptr<shared_memory::SharedMemory> shared;

public:
  const champsim::chrono::clock::duration minor_fault_penalty;
  const std::size_t pt_levels;
  const pte_entry pte_page_size;

  VirtualMemory(champsim::data::bytes page_table_page_size, std::size_t page_table_levels, champsim::chrono::clock::duration minor_penalty,
                MEMORY_CONTROLLER& dram, std::optional<uint64_t> randomization_seed = {});
  ~VirtualMemory();

  // What an address of a level of the page tables is made of: its lowest bit, all its bits, their value.
  [[nodiscard]] champsim::data::bits shamt(std::size_t level) const;
  [[nodiscard]] champsim::dynamic_extent extent(std::size_t level) const;
  [[nodiscard]] uint64_t get_offset(champsim::address vaddr, std::size_t level) const;
  [[nodiscard]] uint64_t get_offset(champsim::page_number vaddr, std::size_t level) const;

  // Frames not handed out yet.
  [[nodiscard]] std::size_t available_ppages() const;

  // The frame of a page of a core, and the address of an entry of its page tables, each with the penalty for a fault.
  std::pair<champsim::page_number, champsim::chrono::clock::duration> va_to_pa(uint32_t cpu_num, champsim::page_number vaddr);
  std::pair<champsim::address, champsim::chrono::clock::duration> get_pte_pa(uint32_t cpu_num, champsim::page_number vaddr, std::size_t level);

  // The memory behind it, for ksm_hooks.cc.
  shared_memory::SharedMemory& memory() { return *shared; }
};

#endif
