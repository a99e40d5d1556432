/* SPDX-License-Identifier: MIT */
/*
 * What coroutines, wakes and small I/O cost. Prints nanoseconds an operation: of the clock, and of
 * the processors, which also counts what the kernel's own threads do for this process.
 *
 *   bench-coroutine [FILE-FOLDER]      the folder for the I/O's file, default /var/tmp
 */
#include "util/coroutine.h"
#include "util/event-loop.h"
#include "util/size.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define FILE_SIZE (64 * MiB)
#define BLOCK     4096
#define DEPTH     32

static EventLoop *main_loop;

typedef struct Mark {
    int64_t clock_ns;
    int64_t cpu_ns;
} Mark;

static Mark mark(void)
{
    struct timespec cpu;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    return (Mark){ event_loop_now_ns(), (int64_t)cpu.tv_sec * 1000000000 + cpu.tv_nsec };
}

static void report(const char *what, Mark start, int n)
{
    Mark end = mark();

    printf("%-44s %9.1f ns %9.1f ns CPU\n", what, (double)(end.clock_ns - start.clock_ns) / n,
           (double)(end.cpu_ns - start.cpu_ns) / n);
}

static void nothing(void *opaque)
{
}

static void bench_start(void)
{
    int n = 10000000;
    Mark start = mark();

    for (int i = 0; i < n; i++) {
        coroutine_start(nothing, NULL);
    }
    report("start and end a coroutine", start, n);
}

static void pause_often(void *opaque)
{
    for (int i = 0; i < *(int *)opaque; i++) {
        coroutine_pause();
    }
}

static void bench_pause(void)
{
    int n = 5000000;
    Mark start = mark();

    coroutine_run(pause_often, &n);
    report("wake and switch, alone on the loop", start, n);
}

typedef struct Group {
    int n;
    int left;
    atomic_bool done;
    void (*step)(int i);
} Group;

static void join_group(void *opaque)
{
    Group *group = opaque;

    while (group->left > 0) {
        group->step(group->left--);
    }
    if (--group->n == 0) {
        atomic_store(&group->done, true);
    }
}

static void run_group(const char *what, int n, void (*step)(int i))
{
    Group group = { .n = DEPTH, .left = n, .step = step };
    Mark start = mark();

    for (int i = 0; i < DEPTH; i++) {
        coroutine_start(join_group, &group);
    }
    event_loop_poll_until(main_loop, &group.done);
    report(what, start, n);
}

static void pause_step(int i)
{
    coroutine_pause();
}

static CoMutex mutex;

static void mutex_step(int i)
{
    co_mutex_lock(&mutex);
    co_mutex_unlock(&mutex);
}

static void contended_step(int i)
{
    co_mutex_lock(&mutex);
    coroutine_pause();
    co_mutex_unlock(&mutex);
}

/* Two loops that wake each other's coroutine in turn. */
typedef struct PingPong {
    Coroutine *co[2];
    atomic_int started;
    int n;
    atomic_bool done;
} PingPong;

static PingPong ping_pong;

static void play(int me)
{
    ping_pong.co[me] = coroutine_self();
    if (atomic_fetch_add(&ping_pong.started, 1) == 0) {
        coroutine_yield();
    }
    for (int i = 0; i < ping_pong.n; i++) {
        coroutine_wake(ping_pong.co[!me]);
        if (i + 1 < ping_pong.n || me) {
            coroutine_yield();
        }
    }
}

static void play_there(void *opaque)
{
    play(0);
}

static void play_here(void *opaque)
{
    play(1);
    atomic_store(&ping_pong.done, true);
}

static void bench_ping_pong(EventLoop *other)
{
    Mark start;

    ping_pong.n = 200000;
    coroutine_start_on(other, play_there, NULL);
    while (!atomic_load(&ping_pong.started)) {
    }
    start = mark();
    coroutine_start(play_here, NULL);
    event_loop_poll_until(main_loop, &ping_pong.done);
    report("there and back between two sleeping loops", start, ping_pong.n);
}

typedef struct Calls {
    int left;
    atomic_bool done;
} Calls;

static void count_call(void *opaque)
{
    Calls *calls = opaque;

    if (--calls->left == 0) {
        atomic_store(&calls->done, true);
        event_loop_notify(main_loop);
    }
}

static void bench_calls(EventLoop *other)
{
    int n = 2000000;
    Calls calls = { .left = n };
    Mark start = mark();

    for (int i = 0; i < n; i++) {
        event_loop_call(other, count_call, &calls);
    }
    event_loop_poll_until(main_loop, &calls.done);
    report("event_loop_call of another thread, in bulk", start, n);
}

static int file;
static char *buffers;

static int64_t random_offset(void)
{
    static uint64_t state = 1;

    state = state * 6364136223846793005 + 1442695040888963407;
    return (int64_t)(state >> 33) % (FILE_SIZE / BLOCK) * BLOCK;
}

static void read_step(int i)
{
    struct iovec iov = { buffers + i % DEPTH * BLOCK, BLOCK };

    g_assert_cmpint(co_io_preadv(file, &iov, 1, random_offset()), ==, BLOCK);
}

static void write_step(int i)
{
    struct iovec iov = { buffers + i % DEPTH * BLOCK, BLOCK };

    g_assert_cmpint(co_io_pwritev(file, &iov, 1, random_offset(), 0), ==, BLOCK);
}

static void big_read_step(int i)
{
    struct iovec iov = { buffers, DEPTH * BLOCK };

    g_assert_cmpint(co_io_preadv(file, &iov, 1, random_offset() / 2), ==, DEPTH * BLOCK);
}

static void drop_cache(void)
{
    g_assert_cmpint(fdatasync(file), ==, 0);
    g_assert_cmpint(posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED), ==, 0);
}

static void bench_file(const char *folder)
{
    g_autofree char *path = g_strdup_printf("%s/merino-bench-XXXXXX", folder);

    file = mkstemp(path);
    g_assert_cmpint(file, >=, 0);
    g_assert_cmpint(posix_memalign((void **)&buffers, BLOCK, DEPTH * BLOCK), ==, 0);
    memset(buffers, 0x5a, DEPTH * BLOCK);
    for (int64_t offset = 0; offset < FILE_SIZE; offset += DEPTH * BLOCK) {
        g_assert_cmpint(pwrite(file, buffers, DEPTH * BLOCK, offset), ==, DEPTH * BLOCK);
    }
    run_group("cached 4 KiB read, depth 32", 500000, read_step);
    run_group("cached 128 KiB read, depth 32", 50000, big_read_step);
    run_group("buffered 4 KiB write, depth 32", 200000, write_step);
    drop_cache();
    run_group("uncached 4 KiB read, depth 32", 10000, read_step);
    g_assert_cmpint(fcntl(file, F_SETFL, O_DIRECT), ==, 0);
    run_group("direct 4 KiB read, depth 32", 10000, read_step);
    run_group("direct 4 KiB write, depth 32", 10000, write_step);
    close(file);
    unlink(path);
    free(buffers);
}

/* An echo over a socket pair between the two loops, 28 bytes at a time. */
static int sockets[2];
static int echoes;

static void echo(void *opaque)
{
    char bytes[28];
    struct iovec iov = { bytes, sizeof(bytes) };
    ssize_t n;

    while ((n = co_io_recv(sockets[1], &iov, 1)) > 0) {
        struct iovec out = { bytes, n };

        g_assert_cmpint(co_io_send(sockets[1], &out, 1), ==, 0);
    }
    atomic_store((atomic_bool *)opaque, true);
    event_loop_notify(main_loop);
}

static void ask(void *opaque)
{
    char bytes[28] = "";

    for (int i = 0; i < echoes; i++) {
        struct iovec out = { bytes, sizeof(bytes) }, in = { bytes, sizeof(bytes) };

        g_assert_cmpint(co_io_send(sockets[0], &out, 1), ==, 0);
        g_assert_cmpint(co_io_recv(sockets[0], &in, 1), ==, sizeof(bytes));
    }
    shutdown(sockets[0], SHUT_RDWR);
}

static void bench_echo(EventLoop *other)
{
    atomic_bool done = false;
    Mark start = mark();

    echoes = 100000;
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sockets), ==, 0);
    coroutine_start_on(other, echo, &done);
    coroutine_run(ask, NULL);
    event_loop_poll_until(main_loop, &done);
    report("28-byte round trip over a socket pair", start, echoes);
    close(sockets[0]);
    close(sockets[1]);
}

int main(int argc, char **argv)
{
    EventLoop *other;

    main_loop = event_loop_main();
    other = event_loop_new("other", NULL);
    printf("backend: %s\n", event_loop_has_uring(main_loop) ? "io_uring" : "epoll and workers");
    bench_start();
    bench_pause();
    run_group("wake and switch, 32 on the loop", 5000000, pause_step);
    co_mutex_init(&mutex);
    run_group("lock and unlock a free CoMutex", 5000000, mutex_step);
    run_group("pass a CoMutex on", 2000000, contended_step);
    co_mutex_done(&mutex);
    bench_ping_pong(other);
    bench_calls(other);
    bench_echo(other);
    bench_file(argc > 1 ? argv[1] : "/var/tmp");
    event_loop_free(other);
    return 0;
}
