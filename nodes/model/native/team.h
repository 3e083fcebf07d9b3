// Threads that go through the stages of a pass together, none of which waits for one that is not
// there.
//
// A barrier of OpenMP waits for every thread, be there work left for it or not: one that still
// sleeps, or whose processor another program has, holds all of them up, several hundred times in a
// pass. Here a stage is over when its tasks are, whoever did them. One who comes late goes on where
// the others are.

#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace helix {

// What the threads of a pass share: the stage in the upper half of `next`, in the lower half the
// first task of it that nobody has taken.
struct alignas(64) Team {
  std::atomic<uint64_t> next{0};
  alignas(64) std::atomic<int64_t> done{0};
};

// Some 50 us of looking before the processor is offered to others.
constexpr int kLooks = 1000;

inline void relax(int looks) {
  if (looks > kLooks) sched_yield();
#if defined(__x86_64__)
  else _mm_pause();
#endif
}

// One thread of a team. All of them call share() with the same numbers of tasks in the same order.
class Member {
 public:
  Member(Team &team, int threads) : team_(team), threads_(threads) {}

  // do_task(i) for each i of [0, tasks), each by one thread; what they wrote is seen by all
  // afterwards. Threads take neighbouring tasks, fewer and fewer: memory is read best in one piece,
  // and the last ones should end at the same time.
  template <class Task>
  void share(int64_t tasks, Task do_task) {
    if (threads_ == 1) {
      for (int64_t i = 0; i < tasks; ++i) do_task(i);
      return;
    }
    if (tasks <= 0) return;
    const uint64_t stage = stage_++;
    for (int looks = 0;;) {
      uint64_t seen = team_.next.load(std::memory_order_acquire);
      if (seen >> 32 != stage) return;
      const int64_t first = static_cast<int64_t>(seen & 0xffffffffu);
      if (first >= tasks) {
        relax(++looks);
        continue;
      }
      const int64_t count = std::max<int64_t>(1, (tasks - first) / (2 * threads_));
      if (!team_.next.compare_exchange_weak(seen, seen + count, std::memory_order_acq_rel))
        continue;
      for (int64_t i = first; i < first + count; ++i) do_task(i);
      looks = 0;
      if (team_.done.fetch_add(count, std::memory_order_acq_rel) + count == tasks) {
        team_.done.store(0, std::memory_order_relaxed);
        team_.next.store((stage + 1) << 32, std::memory_order_release);
        return;
      }
    }
  }

 private:
  Team &team_;
  const int threads_;
  uint64_t stage_ = 0;
};

}  // namespace helix
