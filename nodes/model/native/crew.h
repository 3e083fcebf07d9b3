// Threads of our own that make one step at a time, without the interpreter.
//
// A step that a thread of Python's is woken for begins three times: that thread wakes, gets the
// interpreter, and then wakes the threads of OpenMP. These are woken together by who has made the
// step ready, and ring a bell when it is over. Between two steps they sleep: the processors are the
// event loops'.

#pragma once

#include "team.h"

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>
#include <functional>
#include <thread>
#include <vector>
#endif

namespace helix {

#if defined(__linux__)
class Crew {
 public:
  // The crew whose job the calling thread leads; nothing for other threads.
  static inline thread_local Crew *own = nullptr;

  // bell: an eventfd, written to after each job. Throws std::system_error where no thread starts.
  Crew(int threads, int bell) : bell_(bell) {
    try {
      while (static_cast<int>(threads_.size()) < threads) threads_.emplace_back([this] { work(); });
    } catch (...) {
      end();
      throw;
    }
  }
  ~Crew() { end(); }
  Crew(const Crew &) = delete;
  Crew &operator=(const Crew &) = delete;

  // Not before the last job is over. hands: as many as it has work for; the others sleep on.
  void post(std::function<int()> job, int hands) {
    job_ = std::move(job);
    working_.store(true, std::memory_order_release);
    // At last: one that still wakes for the job before may take it at once.
    taken_.store(false, std::memory_order_release);
    wake(hands);
  }

  // What the last job gave, and when it began and ended on the system's monotonic clock; -1 while
  // there is one. Takes the bell's ring back.
  int took(double *times) {
    if (working_.load(std::memory_order_acquire)) return -1;
    uint64_t rings;
    [[maybe_unused]] const ssize_t taken = read(bell_, &rings, sizeof rings);
    times[0] = began_s_;
    times[1] = ended_s_;
    return result_;
  }

  // body() on this thread, the leader, and on all others that come before it is done here.
  template <class Body>
  void together(const Body &body) {
    body_ = [](const void *of) { (*static_cast<const Body *>(of))(); };
    of_ = &body;
    const uint64_t turn = (region_.load(std::memory_order_relaxed) >> 32) + 1;
    region_.store(turn << 32 | kOpen, std::memory_order_release);
    body();
    region_.fetch_and(~kOpen, std::memory_order_acq_rel);
    for (int looks = 0; region_.load(std::memory_order_acquire) & kInside;) relax(++looks);
  }

 private:
  static constexpr uint64_t kOpen = 1u << 31, kInside = kOpen - 1;

  static double now_s() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  }

  void wake(int hands) {
    ticket_.fetch_add(1, std::memory_order_release);
    syscall(SYS_futex, &ticket_, FUTEX_WAKE_PRIVATE, hands, nullptr, nullptr, 0);
  }

  // Until there is a new ticket; false when no more will come.
  bool wait(uint32_t &seen) {
    uint32_t now;
    while ((now = ticket_.load(std::memory_order_acquire)) == seen)
      syscall(SYS_futex, &ticket_, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
    seen = now;
    return !over_.load(std::memory_order_acquire);
  }

  // Whoever wakes first leads: the others may wait for a processor.
  void work() {
    for (uint32_t seen = 0; wait(seen);) {
      if (!taken_.exchange(true, std::memory_order_acq_rel))
        lead();
      else
        help();
    }
  }

  void lead() {
    own = this;
    began_s_ = now_s();
    try {
      result_ = job_();
    } catch (...) {
      // No memory, say: whoever posted it may try otherwise.
      result_ = 1;
    }
    ended_s_ = now_s();
    own = nullptr;
    working_.store(false, std::memory_order_release);
    const uint64_t once = 1;
    [[maybe_unused]] const ssize_t rung = write(bell_, &once, sizeof once);
  }

  void help() {
    uint64_t joined = 0;
    for (int looks = 0; working_.load(std::memory_order_acquire);) {
      uint64_t region = region_.load(std::memory_order_acquire);
      if (!(region & kOpen) || region >> 32 == joined) {
        relax(++looks);
        continue;
      }
      if (!region_.compare_exchange_weak(region, region + 1, std::memory_order_acq_rel)) continue;
      body_(of_);
      joined = region >> 32;
      region_.fetch_sub(1, std::memory_order_acq_rel);
      looks = 0;
    }
  }

  void end() {
    over_.store(true, std::memory_order_release);
    // A job that nobody has begun is not begun any more.
    if (!taken_.exchange(true, std::memory_order_acq_rel))
      working_.store(false, std::memory_order_release);
    wake(INT_MAX);
    for (std::thread &thread : threads_) thread.join();
    threads_.clear();
  }

  const int bell_;
  std::function<int()> job_;
  void (*body_)(const void *) = nullptr;
  const void *of_ = nullptr;
  int result_ = 0;
  double began_s_ = 0, ended_s_ = 0;
  std::atomic<bool> over_{false};
  alignas(64) std::atomic<uint32_t> ticket_{0};
  std::atomic<bool> taken_{true}, working_{false};
  // How many there have been in the upper half, whether one may enter, and how many are inside.
  alignas(64) std::atomic<uint64_t> region_{0};
  std::vector<std::thread> threads_;
};

#endif

// body(member) on all threads of a team: a crew's own where its leader calls, else OpenMP's.
template <class Body>
void together(int threads, bool worth, const Body &body) {
  Team team;
  const auto join = [&] {
    Member member(team, threads);
    body(member);
  };
#if defined(__linux__)
  if (Crew::own && threads > 1 && worth) return Crew::own->together(join);
#endif
#pragma omp parallel num_threads(threads) if (threads > 1 && worth)
  join();
}

}  // namespace helix
