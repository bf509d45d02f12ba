/* A wall clock that a test sets and moves while a process runs. Preloaded; clocks that cannot be set are left alone.
 *
 * KEDGE_TEST_CLOCK names a file of eight bytes: how many seconds, signed, this machine's own clock is off.
 *
 * libfaketime 0.9.10 does more than that: with FAKETIME_DONT_FAKE_MONOTONIC=1 it still moves the end of
 * clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME), which Python sleeps by, and a sleep then lasts for years.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *offset_s;
static int (*real_clock_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("KEDGE_TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    real_clock_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    if (file >= 0) {
        void *shared = mmap(NULL, sizeof *offset_s, PROT_READ, MAP_SHARED, file, 0);
        offset_s = shared == MAP_FAILED ? NULL : shared;
        close(file);
    }
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    if (!real_clock_gettime)
        begin();
    int result = real_clock_gettime(clock, now);
    if (!result && offset_s && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *offset_s;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec precise;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out)
        *out = now.tv_sec;
    return now.tv_sec;
}
