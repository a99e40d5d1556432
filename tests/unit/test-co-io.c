/* SPDX-License-Identifier: MIT */
/*
 * I/O of coroutines: files against a naive twin in memory, sockets that fill, drain and shut
 * down, and work on worker threads.
 */
#include "util/event-loop.h"
#include "util/size.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define FILE_SIZE (256 * KiB)

static GRand *rnd;
static EventLoop *main_loop;
static const char *folder;

static int open_temporary(int flags)
{
    g_autofree char *path = g_strdup_printf("%s/merino-test-XXXXXX", folder);
    int fd = g_mkstemp_full(path, O_RDWR | O_CLOEXEC | flags, 0600);

    g_assert_cmpint(fd, >=, 0);
    unlink(path);
    return fd;
}

/* The file and what it must contain. */
typedef struct Twin {
    int fd;
    unsigned char *bytes;
    int unit; /* offsets and lengths are multiples of it */
} Twin;

static void twin_init(Twin *twin, int fd, int unit)
{
    twin->fd = fd;
    twin->unit = unit;
    twin->bytes = g_malloc0(FILE_SIZE);
    g_assert_cmpint(ftruncate(fd, FILE_SIZE), ==, 0);
}

static void twin_done(Twin *twin)
{
    close(twin->fd);
    g_free(twin->bytes);
}

/* Cut `bytes` bytes of `buf` into a few pieces. */
static int cut(const Twin *twin, struct iovec *iov, int max, unsigned char *buf, int64_t bytes)
{
    int n = 0;

    while (bytes) {
        int64_t piece =
            n + 1 == max ? bytes : g_rand_int_range(rnd, 1, bytes / twin->unit + 1) * twin->unit;

        iov[n++] = (struct iovec){ buf, piece };
        buf += piece;
        bytes -= piece;
    }
    return n;
}

static void check_read(Twin *twin, unsigned char *buf, int64_t offset, int64_t bytes)
{
    struct iovec iov[5] = { { NULL, 0 } };
    int niov = cut(twin, iov, G_N_ELEMENTS(iov), buf, bytes);
    ssize_t count = co_io_preadv(twin->fd, iov, niov, offset);

    g_assert_cmpint(count, >, 0);
    g_assert_cmpint(count, <=, bytes);
    g_assert_cmpint(memcmp(buf, twin->bytes + offset, count), ==, 0);
}

static void check_write(Twin *twin, unsigned char *buf, int64_t offset, int64_t bytes)
{
    struct iovec iov[5] = { { NULL, 0 } };
    int niov = cut(twin, iov, G_N_ELEMENTS(iov), buf, bytes);
    ssize_t count;

    memset(buf, g_rand_int_range(rnd, 0, 256), bytes);
    count = co_io_pwritev(twin->fd, iov, niov, offset, g_rand_int_range(rnd, 0, 8) ? 0 : RWF_DSYNC);
    g_assert_cmpint(count, >, 0);
    memcpy(twin->bytes + offset, buf, count);
}

/* Where a file system cannot punch holes, says so and nothing changes. */
static void check_punch(Twin *twin, int64_t offset, int64_t bytes)
{
    int ret = co_io_fallocate(twin->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes);

    if (ret == 0) {
        memset(twin->bytes + offset, 0, bytes);
    } else {
        g_assert_cmpint(ret, ==, -EOPNOTSUPP);
    }
}

static void random_file_steps(void *opaque)
{
    Twin *twin = opaque;
    unsigned char *buf = aligned_alloc(4096, FILE_SIZE);

    memset(buf, 0, FILE_SIZE);
    for (int i = 0; i < 400; i++) {
        int64_t offset = g_rand_int_range(rnd, 0, FILE_SIZE / twin->unit) * twin->unit;
        int64_t most = g_rand_boolean(rnd) ? FILE_SIZE : 16 * KiB;
        int64_t bytes = g_rand_int_range(rnd, 1, most / twin->unit + 1) * twin->unit;

        bytes = MIN(bytes, FILE_SIZE - offset);
        switch (g_rand_int_range(rnd, 0, 8)) {
        case 0:
            check_punch(twin, offset, bytes);
            break;
        case 1:
            g_assert_cmpint(co_io_fdatasync(twin->fd), ==, 0);
            break;
        case 2:
        case 3:
        case 4:
            check_read(twin, buf, offset, bytes);
            break;
        default:
            check_write(twin, buf, offset, bytes);
            break;
        }
    }
    free(buf);
}

static void buffered_file(void)
{
    Twin twin;

    twin_init(&twin, open_temporary(0), 1);
    coroutine_run(random_file_steps, &twin);
    twin.unit = 4096;
    coroutine_run(random_file_steps, &twin);
    twin_done(&twin);
}

static void direct_file(void)
{
    Twin twin;
    int fd = open_temporary(0);

    if (fcntl(fd, F_SETFL, O_DIRECT) < 0) {
        close(fd);
        g_test_skip("the file system refuses O_DIRECT");
        return;
    }
    twin_init(&twin, fd, 4096);
    coroutine_run(random_file_steps, &twin);
    twin_done(&twin);
}

/* The same descriptor number, one kind of file after the other. */
static void reused_descriptors(void)
{
    for (int i = 0; i < 6; i++) {
        Twin twin;
        int fd = open_temporary(0);

        if (i % 2) {
            (void)!fcntl(fd, F_SETFL, O_DIRECT);
        }
        twin_init(&twin, fd, 4096);
        coroutine_run(random_file_steps, &twin);
        twin_done(&twin);
    }
}

static void uncached_reads(void *opaque)
{
    Twin *twin = opaque;
    unsigned char *buf = g_malloc(FILE_SIZE);

    for (int i = 0; i < 100; i++) {
        int64_t offset = g_rand_int_range(rnd, 0, FILE_SIZE / 4096) * 4096;

        posix_fadvise(twin->fd, 0, 0, POSIX_FADV_DONTNEED);
        check_read(twin, buf, offset, 4096);
        check_read(twin, buf, offset, 4096);
    }
    g_free(buf);
}

static void file_outside_the_cache(void)
{
    Twin twin;

    twin_init(&twin, open_temporary(0), 1);
    for (int64_t i = 0; i < FILE_SIZE; i++) {
        twin.bytes[i] = g_rand_int(rnd);
    }
    g_assert_cmpint(pwrite(twin.fd, twin.bytes, FILE_SIZE, 0), ==, FILE_SIZE);
    g_assert_cmpint(fdatasync(twin.fd), ==, 0);
    coroutine_run(uncached_reads, &twin);
    twin_done(&twin);
}

static void check_ends_and_errors(void *opaque)
{
    char buf[100];
    struct iovec iov = { buf, sizeof(buf) }, many[2000];
    int fd = open_temporary(0), read_only = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);

    g_assert_cmpint(co_io_preadv(fd, &iov, 1, 0), ==, 0);
    g_assert_cmpint(pwrite(fd, "abc", 3, 0), ==, 3);
    g_assert_cmpint(co_io_preadv(fd, &iov, 1, 1), ==, 2);
    g_assert_cmpint(co_io_preadv(fd, &iov, 1, 3), ==, 0);
    g_assert_cmpint(co_io_preadv(fd, &iov, 1, -1), ==, -EINVAL);
    g_assert_cmpint(co_io_pwritev(fd, &iov, 1, -1, 0), ==, -EINVAL);
    g_assert_cmpint(co_io_pwritev(read_only, &iov, 1, 0, 0), ==, -EBADF);
    g_assert_cmpint(co_io_preadv(-1, &iov, 1, 0), ==, -EBADF);
    g_assert_cmpint(co_io_pwritev(-1, &iov, 1, 0, 0), ==, -EBADF);
    g_assert_cmpint(co_io_fdatasync(-1), ==, -EBADF);
    g_assert_cmpint(co_io_fallocate(-1, 0, 0, 10), ==, -EBADF);
    g_assert_cmpint(co_io_fallocate(fd, 0, 0, -1), ==, -EINVAL);
    g_assert_cmpint(co_io_poll(-1, POLLIN), ==, -EBADF);
    g_assert_cmpint(co_io_recv(-1, &iov, 1), ==, -EBADF);
    g_assert_cmpint(co_io_send(-1, &iov, 1), ==, -EBADF);
    g_assert_cmpint(co_io_recv(fd, &iov, 1), ==, -ENOTSOCK);
    g_assert_cmpint(co_io_poll(fd, POLLIN | POLLOUT), ==, POLLIN | POLLOUT);

    /* More pieces than one system call takes: a short count. */
    for (size_t i = 0; i < G_N_ELEMENTS(many); i++) {
        many[i] = (struct iovec){ buf, 1 };
    }
    g_assert_cmpint(co_io_pwritev(fd, many, G_N_ELEMENTS(many), 0, 0), ==, 1024);
    close(fd);
    close(read_only);
}

static void ends_and_errors(void)
{
    coroutine_run(check_ends_and_errors, NULL);
}

/* More operations at once than any queue holds. */
typedef struct Flood {
    int fd;
    int left;
    atomic_bool done;
} Flood;

static void flood_one(void *opaque)
{
    Flood *flood = opaque;
    char byte = 0;
    struct iovec iov = { &byte, 1 };

    if (g_rand_boolean(rnd)) {
        g_assert_cmpint(co_io_fdatasync(flood->fd), ==, 0);
    } else {
        g_assert_cmpint(co_io_pwritev(flood->fd, &iov, 1, flood->left, RWF_DSYNC), ==, 1);
    }
    if (--flood->left == 0) {
        atomic_store(&flood->done, true);
    }
}

static void more_than_the_queue_holds(void)
{
    Flood flood = { .fd = open_temporary(0), .left = 3000 };

    for (int i = 0; i < 3000; i++) {
        coroutine_start(flood_one, &flood);
    }
    event_loop_poll_until(main_loop, &flood.done);
    close(flood.fd);
}

/* Writes that take long enough to be done elsewhere, beside others on the same loop. */
#define BUSY_WRITERS 32
#define BUSY_ROUNDS  50
#define BUSY_PIECE   (64 * KiB)

typedef struct BusyFile {
    int fd;
    int n_begun, n_left;
    atomic_bool done;
} BusyFile;

static void write_and_look(void *opaque)
{
    BusyFile *file = opaque;
    int64_t offset = file->n_begun++ * BUSY_PIECE;
    unsigned char *buf = g_malloc(BUSY_PIECE), *found = g_malloc(BUSY_PIECE);

    for (int round = 0; round < BUSY_ROUNDS; round++) {
        struct iovec iov = { buf, BUSY_PIECE };

        coroutine_pause();
        memset(buf, (int)g_rand_int_range(rnd, 0, 256), BUSY_PIECE);
        g_assert_cmpint(co_io_pwritev(file->fd, &iov, 1, offset, 0), ==, BUSY_PIECE);
        iov.iov_base = found;
        g_assert_cmpint(co_io_preadv(file->fd, &iov, 1, offset), ==, BUSY_PIECE);
        g_assert_cmpmem(found, BUSY_PIECE, buf, BUSY_PIECE);
    }
    g_free(buf);
    g_free(found);
    if (--file->n_left == 0) {
        atomic_store(&file->done, true);
    }
}

static void costly_writes_beside_others(void)
{
    BusyFile file = { .fd = open_temporary(0), .n_left = BUSY_WRITERS };

    for (int i = 0; i < BUSY_WRITERS; i++) {
        coroutine_start(write_and_look, &file);
    }
    event_loop_poll_until(main_loop, &file.done);
    close(file.fd);
}

/* A stream of numbered bytes through a socket pair, each end on a loop of its own. */
#define STREAM_SIZE (8 * MiB)

typedef struct Stream {
    int fd[2];
    atomic_int left;
    atomic_bool done;
} Stream;

static unsigned char stream_byte(int64_t i)
{
    return (i * 2654435761U) >> 24;
}

static void leave_stream(Stream *stream)
{
    if (atomic_fetch_sub(&stream->left, 1) == 1) {
        atomic_store(&stream->done, true);
        event_loop_notify(main_loop);
    }
}

static void send_stream(void *opaque)
{
    Stream *stream = opaque;
    unsigned state = 12345;
    int64_t sent = 0;
    unsigned char *buf = g_malloc(300 * KiB);

    while (sent < STREAM_SIZE) {
        int64_t n;
        struct iovec iov[3];

        state = state * 1103515245 + 12345;
        n = MIN(1 + (int64_t)(state >> 8) % (300 * KiB), STREAM_SIZE - sent);
        for (int64_t i = 0; i < n; i++) {
            buf[i] = stream_byte(sent + i);
        }
        iov[0] = (struct iovec){ buf, n / 3 };
        iov[1] = (struct iovec){ buf + n / 3, 0 };
        iov[2] = (struct iovec){ buf + n / 3, n - n / 3 };
        g_assert_cmpint(co_io_send(stream->fd[0], iov, 3), ==, 0);
        sent += n;
    }
    shutdown(stream->fd[0], SHUT_WR);
    g_free(buf);
    leave_stream(stream);
}

static void receive_stream(void *opaque)
{
    Stream *stream = opaque;
    int64_t received = 0;
    unsigned char *buf = g_malloc(64 * KiB);
    ssize_t n;

    do {
        struct iovec iov[2] = { { buf, 1000 }, { buf + 1000, 64 * KiB - 1000 } };

        n = co_io_recv(stream->fd[1], iov, 2);
        g_assert_cmpint(n, >=, 0);
        for (ssize_t i = 0; i < n; i++) {
            if (buf[i] != stream_byte(received + i)) {
                g_error("wrong byte at %" G_GINT64_FORMAT, received + i);
            }
        }
        received += n;
    } while (n);
    g_assert_cmpint(received, ==, STREAM_SIZE);
    g_free(buf);
    leave_stream(stream);
}

static void open_pair(int fd[2])
{
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd), ==, 0);
}

static void streams_arrive_whole(void)
{
    EventLoop *other = event_loop_new("receiver", NULL);
    Stream stream = { .left = 2 };

    open_pair(stream.fd);
    coroutine_start_on(other, receive_stream, &stream);
    coroutine_start(send_stream, &stream);
    event_loop_poll_until(main_loop, &stream.done);
    event_loop_free(other);
    close(stream.fd[0]);
    close(stream.fd[1]);
}

/* --- a watched socket --- */

typedef struct Watched {
    int fd[2];
    atomic_int left; /* of both sides */
    atomic_bool done;
} Watched;

#define EXCHANGES 2000

static void leave_watched(Watched *watched)
{
    if (atomic_fetch_sub(&watched->left, 1) == 1) {
        atomic_store(&watched->done, true);
        event_loop_notify(main_loop);
    }
}

static void ask_watched(void *opaque)
{
    Watched *watched = opaque;

    for (unsigned i = 0; i < EXCHANGES; i++) {
        struct iovec iov = { &i, sizeof(i) };
        unsigned reply;
        struct iovec into = { &reply, sizeof(reply) };

        g_assert_cmpint(co_io_send(watched->fd[0], &iov, 1), ==, 0);
        g_assert_cmpint(co_io_recv(watched->fd[0], &into, 1), ==, sizeof(reply));
        g_assert_cmpuint(reply, ==, ~i);
    }
    shutdown(watched->fd[0], SHUT_WR);
    leave_watched(watched);
}

/* Begins and ends a watch every now and then, in whatever state it is. */
static void answer_watched(void *opaque)
{
    Watched *watched = opaque;
    SocketWatch *watch = socket_watch_new(watched->fd[1]);
    unsigned request;
    ssize_t n;

    g_assert((watch != NULL) == event_loop_has_uring(event_loop_current()));
    do {
        struct iovec iov = { &request, sizeof(request) };

        n = watch ? socket_watch_recv(watch, &iov, 1) : co_io_recv(watched->fd[1], &iov, 1);
        if (n == 0) {
            break;
        }
        g_assert_cmpint(n, ==, sizeof(request));
        if (watch && request % 7 == 3) {
            socket_watch_free(watch);
            watch = socket_watch_new(watched->fd[1]);
        }
        request = ~request;
        iov = (struct iovec){ &request, sizeof(request) };
        g_assert_cmpint(co_io_send(watched->fd[1], &iov, 1), ==, 0);
    } while (true);
    if (watch) {
        socket_watch_free(watch);
    }
    leave_watched(watched);
}

static void run_watched(EventLoop *loop)
{
    Watched watched = { .left = 2 };

    open_pair(watched.fd);
    coroutine_start_on(loop, answer_watched, &watched);
    coroutine_start(ask_watched, &watched);
    event_loop_poll_until(main_loop, &watched.done);
    close(watched.fd[0]);
    close(watched.fd[1]);
}

static void watched_sockets_answer(void)
{
    run_watched(main_loop);
}

static void watched_sockets_answer_elsewhere(void)
{
    EventLoop *other = event_loop_new("watcher", NULL);

    run_watched(other);
    event_loop_free(other);
}

static void receive_watched_stream(void *opaque)
{
    Stream *stream = opaque;
    SocketWatch *watch = socket_watch_new(stream->fd[1]);
    int64_t received = 0;
    unsigned char buf[5000];
    struct iovec iov = { buf, sizeof(buf) };
    ssize_t n = 1;

    while (watch && (n = socket_watch_recv(watch, &iov, 1)) > 0) {
        for (ssize_t i = 0; i < n; i++) {
            g_assert_cmpuint(buf[i], ==, stream_byte(received + i));
        }
        received += n;
    }
    g_assert_cmpint(received, ==, STREAM_SIZE);
    socket_watch_free(watch);
    leave_stream(stream);
}

static void watched_streams_arrive_whole(void)
{
    Stream stream = { .left = 2 };
    EventLoop *other = event_loop_new("receiver", NULL);

    if (!event_loop_has_uring(main_loop)) { /* receivers do without */
        g_assert_null(socket_watch_new(0));
        event_loop_free(other);
        return;
    }
    open_pair(stream.fd);
    coroutine_start_on(other, receive_watched_stream, &stream);
    coroutine_start(send_stream, &stream);
    event_loop_poll_until(main_loop, &stream.done);
    event_loop_free(other);
    close(stream.fd[0]);
    close(stream.fd[1]);
}

/* Waiting coroutines on one socket, and what ends each wait. */
typedef struct Waiter {
    int fd;
    short events;
    int revents;
    bool waiting;
} Waiter;

static void wait_for_events(void *opaque)
{
    Waiter *waiter = opaque;

    waiter->waiting = true;
    waiter->revents = co_io_poll(waiter->fd, waiter->events);
    waiter->waiting = false;
}

static void poll_while(const bool *waiting)
{
    while (*waiting) {
        event_loop_poll(main_loop, true);
    }
}

static void fill(int fd)
{
    char bytes[4096] = "";

    while (send(fd, bytes, sizeof(bytes), MSG_DONTWAIT) > 0) {
    }
}

static void drain(int fd)
{
    char bytes[4096];

    while (recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT) > 0) {
    }
}

static void reader_and_writer_wait_for_one_socket(void)
{
    for (int round = 0; round < 10; round++) {
        int fd[2];
        Waiter reader, other_reader, writer;

        open_pair(fd);
        fill(fd[0]);
        reader = other_reader = (Waiter){ .fd = fd[0], .events = POLLIN };
        writer = (Waiter){ .fd = fd[0], .events = POLLOUT };
        coroutine_start(wait_for_events, &reader);
        coroutine_start(wait_for_events, &writer);
        coroutine_start(wait_for_events, &other_reader);
        while (event_loop_poll(main_loop, false)) {
        }
        g_assert_true(reader.waiting && writer.waiting && other_reader.waiting);
        drain(fd[1]);
        poll_while(&writer.waiting);
        g_assert_cmpint(writer.revents & (POLLIN | POLLOUT), ==, POLLOUT);
        g_assert_true(reader.waiting && other_reader.waiting);
        g_assert_cmpint(send(fd[1], "x", 1, 0), ==, 1);
        poll_while(&reader.waiting);
        poll_while(&other_reader.waiting);
        g_assert_cmpint(reader.revents, ==, POLLIN);
        g_assert_cmpint(other_reader.revents, ==, POLLIN);
        close(fd[0]);
        close(fd[1]);
    }
}

static gpointer shut_down(gpointer opaque)
{
    shutdown(*(int *)opaque, SHUT_RDWR);
    return NULL;
}

static void receive_end(void *opaque)
{
    Waiter *waiter = opaque;
    char byte;
    struct iovec iov = { &byte, 1 };

    waiter->waiting = true;
    g_assert_cmpint(co_io_recv(waiter->fd, &iov, 1), ==, 0);
    waiter->waiting = false;
}

static void send_to_nobody(void *opaque)
{
    Waiter *waiter = opaque;
    char *bytes = g_malloc0(1 * MiB);
    struct iovec iov = { bytes, 1 * MiB };

    waiter->waiting = true;
    g_assert_cmpint(co_io_send(waiter->fd, &iov, 1), ==, -EPIPE);
    waiter->waiting = false;
    g_free(bytes);
}

static void shutdown_ends_the_waits(void)
{
    for (int round = 0; round < 20; round++) {
        int fd[2];
        Waiter receiver, sender;
        GThread *thread;

        open_pair(fd);
        receiver = sender = (Waiter){ .fd = fd[0] };
        coroutine_start(receive_end, &receiver);
        coroutine_start(send_to_nobody, &sender);
        thread = g_thread_new("shutdown", shut_down, &fd[0]);
        poll_while(&receiver.waiting);
        poll_while(&sender.waiting);
        g_thread_join(thread);
        close(fd[0]);
        close(fd[1]);
    }
}

static void send_of_nothing(void *opaque)
{
    struct iovec iov[2] = { { NULL, 0 }, { NULL, 0 } };

    g_assert_cmpint(co_io_send(-1, iov, 2), ==, 0);
    g_assert_cmpint(co_io_send(-1, NULL, 0), ==, 0);
}

static void empty_sends_need_no_socket(void)
{
    coroutine_run(send_of_nothing, NULL);
}

/* Who never has to wait leaves room for others. */
typedef struct Greedy {
    int fd;
    bool stop;
    bool stopped;
} Greedy;

static void write_on_and_on(void *opaque)
{
    Greedy *greedy = opaque;
    char *bytes = g_malloc0(64 * KiB);
    struct iovec iov = { bytes, 64 * KiB };

    while (!greedy->stop) {
        g_assert_cmpint(co_io_pwritev(greedy->fd, &iov, 1, 0, 0), ==, 64 * KiB);
        g_assert_cmpint(co_io_preadv(greedy->fd, &iov, 1, 0), ==, 64 * KiB);
    }
    g_free(bytes);
    greedy->stopped = true;
}

static void stop_greedy(void *opaque)
{
    ((Greedy *)opaque)->stop = true;
}

static void the_greedy_let_others_run(void)
{
    Greedy greedy = { .fd = open_temporary(0) };

    event_loop_call(main_loop, stop_greedy, &greedy);
    coroutine_start(write_on_and_on, &greedy);
    while (!greedy.stopped) {
        event_loop_poll(main_loop, true);
    }
    close(greedy.fd);
}

/* Workers. */
typedef struct Job {
    int64_t caller;
    int i;
    int *left;
} Job;

static int work(void *opaque)
{
    Job *job = opaque;

    g_assert_cmpint(gettid(), !=, job->caller);
    g_assert_null(event_loop_current());
    return job->i * 3;
}

static void order_work(void *opaque)
{
    Job *job = opaque;
    Job copy = { .caller = gettid(), .i = job->i };

    g_assert_cmpint(co_run_in_worker(work, &copy), ==, copy.i * 3);
    g_assert_cmpint(gettid(), ==, copy.caller);
    (*job->left)--;
}

static void workers_work(void)
{
    Job jobs[500];
    int left = G_N_ELEMENTS(jobs);

    for (size_t i = 0; i < G_N_ELEMENTS(jobs); i++) {
        jobs[i] = (Job){ .i = (int)i, .left = &left };
        coroutine_start(order_work, &jobs[i]);
    }
    while (left) {
        event_loop_poll(main_loop, true);
    }
}

int main(int argc, char **argv)
{
    const char *given = getenv("MERINO_TEST_SEED");
    guint32 seed = given ? strtoul(given, NULL, 0) : g_random_int();
    int ret;

    g_test_init(&argc, &argv, NULL);
    g_test_message("MERINO_TEST_SEED=%u", seed);
    rnd = g_rand_new_with_seed(seed);
    folder = g_get_tmp_dir();
    main_loop = event_loop_main();
    g_test_add_func("/co-io/file/buffered", buffered_file);
    g_test_add_func("/co-io/file/direct", direct_file);
    g_test_add_func("/co-io/file/reused-descriptors", reused_descriptors);
    g_test_add_func("/co-io/file/outside-the-cache", file_outside_the_cache);
    g_test_add_func("/co-io/file/the-greedy-let-others-run", the_greedy_let_others_run);
    g_test_add_func("/co-io/file/more-than-the-queue-holds", more_than_the_queue_holds);
    g_test_add_func("/co-io/file/costly-writes-beside-others", costly_writes_beside_others);
    g_test_add_func("/co-io/ends-and-errors", ends_and_errors);
    g_test_add_func("/co-io/socket/streams-arrive-whole", streams_arrive_whole);
    g_test_add_func("/co-io/socket/watch/answers", watched_sockets_answer);
    g_test_add_func("/co-io/socket/watch/answers-elsewhere", watched_sockets_answer_elsewhere);
    g_test_add_func("/co-io/socket/watch/streams-arrive-whole", watched_streams_arrive_whole);
    g_test_add_func("/co-io/socket/reader-and-writer-wait-for-one",
                    reader_and_writer_wait_for_one_socket);
    g_test_add_func("/co-io/socket/shutdown-ends-the-waits", shutdown_ends_the_waits);
    g_test_add_func("/co-io/socket/empty-sends-need-none", empty_sends_need_no_socket);
    g_test_add_func("/co-io/workers-work", workers_work);
    ret = g_test_run();
    g_rand_free(rnd);
    return ret;
}
