// See vmem.h. First its header: it includes Python.h, which wants to be the first of all.
#include "shared_memory.hpp"

#include "vmem.h"

#include <cassert>

#include "dram_controller.h"

using namespace champsim::data::data_literals;

namespace
{
constexpr champsim::data::bytes reserved{1 << 20}; // at the bottom of memory, never handed out

std::unique_ptr<shared_memory::SharedMemory> make_memory(champsim::data::bytes table_page, std::size_t levels, MEMORY_CONTROLLER& dram,
                                                         std::optional<uint64_t> seed)
{
  assert(PAGE_SIZE == shared_memory::page_size);
  const auto number = static_cast<uint64_t>((champsim::data::bytes{dram.size()} - reserved).count()) / shared_memory::page_size;
  return std::make_unique<shared_memory::SharedMemory>(static_cast<uint64_t>(reserved.count()) / shared_memory::page_size, number, seed, levels,
                                                       static_cast<uint64_t>(table_page.count()));
}
} // namespace

VirtualMemory::VirtualMemory(champsim::data::bytes page_table_page_size, std::size_t page_table_levels, champsim::chrono::clock::duration minor_penalty,
                             MEMORY_CONTROLLER& dram, std::optional<uint64_t> randomization_seed)
    : shared(make_memory(page_table_page_size, page_table_levels, dram, randomization_seed)), minor_fault_penalty(minor_penalty),
      pt_levels(page_table_levels), pte_page_size(page_table_page_size)
{
}

VirtualMemory::~VirtualMemory() = default;

champsim::data::bits VirtualMemory::shamt(std::size_t level) const { return champsim::data::bits{shared->tables.shift(level)}; }

champsim::dynamic_extent VirtualMemory::extent(std::size_t level) const { return champsim::dynamic_extent{shamt(level), shared->tables.bits()}; }

uint64_t VirtualMemory::get_offset(champsim::address vaddr, std::size_t level) const { return shared->tables.index(vaddr.to<uint64_t>(), level); }

uint64_t VirtualMemory::get_offset(champsim::page_number vaddr, std::size_t level) const { return get_offset(champsim::address{vaddr}, level); }

std::size_t VirtualMemory::available_ppages() const { return shared->frames_left(); }

std::pair<champsim::page_number, champsim::chrono::clock::duration> VirtualMemory::va_to_pa(uint32_t cpu_num, champsim::page_number vaddr)
{
  const auto [frame, fault] = shared->translate(cpu_num, vaddr.to<uint64_t>());
  return {champsim::page_number{frame}, fault ? minor_fault_penalty : champsim::chrono::clock::duration::zero()};
}

std::pair<champsim::address, champsim::chrono::clock::duration> VirtualMemory::get_pte_pa(uint32_t cpu_num, champsim::page_number vaddr, std::size_t level)
{
  const auto [addr, made] = shared->tables.entry(cpu_num, vaddr.to<uint64_t>(), level);
  return {champsim::address{addr}, made ? minor_fault_penalty : champsim::chrono::clock::duration::zero()};
}
