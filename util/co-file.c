/* SPDX-License-Identifier: MIT */
/*
 * File I/O of coroutines.
 *
 * What the page cache can do at once is best done in place: no queue, no switch, no other thread.
 * So before an operation is handed to the backend, it may be tried here:
 *  - buffered reads with RWF_NOWAIT, which fails when the bytes are not in the cache. After a
 *    miss the next ones go straight to the backend, more of them with each further miss. On a
 *    ring only the first few of an iteration are tried: many at once are cheaper as one batch.
 *  - buffered writes with RWF_NOWAIT, where the file system knows it. Where it does not or
 *    refuses (as many do when space must be allocated), io_uring would give each write to a kernel
 *    thread; so whole pages are simply written when the file system is a local one: that copies
 *    them into the cache. It may block nevertheless, when the kernel throttles writers. So each
 *    is timed, and when two of few were slow, and it was not other processes that took the time,
 *    the backend gets all for a while, longer each time.
 *  - both, plainly, on a file system in memory.
 * A write in place keeps the whole loop. Where writes to a file take long although nothing
 * throttles them (ext4 walks all blocks of a large folio for each), and other coroutines are ready
 * to run meanwhile, the kernel's thread for that file does them: one processor copies what others
 * write.
 * Descriptors opened with O_DIRECT go to the backend.
 *
 * What is known of a descriptor is kept in a small table of each loop, and looked up anew now and
 * then, since nobody tells when a descriptor is closed and its number used again. A stale entry
 * makes I/O slower, not wrong.
 */
#include "event-loop-int.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#define TRAIT_SLOTS 64
#define TRAIT_USES  256

/* A long read that is in the cache is copied by the ring just as well; a long write would be copied
 * by a kernel thread, which finds none of it in its processor's cache. */
#define IN_PLACE_READ_MAX   (128 * 1024)
#define IN_PLACE_WRITE_MAX  (1024 * 1024)
#define BYTES_PER_ITERATION (1024 * 1024)
#define READS_PER_BATCH     2
#define MISSES_MAX          6 /* skip at most 2^6 - 1 reads */
#define PAGE                4096

/* A write into the cache takes microseconds; a throttled one milliseconds. Two of these within
 * SLOWNESS writes are a reason to write elsewhere. But a write may also take long because its
 * thread had to make way for others; so behind a slow one it counts whether the thread itself went
 * to sleep. */
#define SLOW_WRITE_NS INT64_C(500000) /* and as much as copying takes: */
#define COPY_BYTES_NS 2
#define SLOWNESS      100
#define PAUSE_MIN_NS  INT64_C(100000000)
#define PAUSE_MAX_NS  INT64_C(10000000000)

/* The way to a kernel thread and back costs a few microseconds, and a wake-up. What is known of the
 * cost fades while writes go that way, so that it is found out anew after some hundreds. */
#define COSTLY_WRITE_NS INT64_C(10000)
#define COST_STEPS      16
#define COST_STEP_MIN   INT64_C(100)
#define COST_FADES      512
#define MIN_READY       2
#define SHORT_WRITE_MAX (64 * 1024) /* what the cost is known of */

/* XFS has no entry in <linux/magic.h>. */
#define XFS_MAGIC 0x58465342

typedef enum InPlace {
    NEVER,
    NOWAIT,
    PLAINLY
} InPlace;

/* How trying without waiting went of late. */
typedef struct Luck {
    unsigned misses; /* in a row */
    unsigned to_skip;
} Luck;

struct FileTrait {
    int fd; /* -1: free */
    bool direct;
    dev_t device;
    ino_t inode;
    unsigned uses_left; /* before the descriptor is looked up again */
    InPlace read;
    InPlace write;
    bool may_block_in_write; /* where RWF_NOWAIT fails */
    Luck read_luck;
    Luck write_luck;
    unsigned slowness; /* of plain writes: SLOWNESS for a slow one, less 1 for each quick one */
    int64_t write_pause_end_ns;
    int64_t write_pause_ns;
    int64_t write_cost_ns; /* about the median of plain writes */
};

/* What is worth trying on a buffered regular file of a file system. */
static void expect(FileTrait *trait, unsigned file_system)
{
    trait->read = trait->write = NOWAIT;
    switch (file_system) {
    case TMPFS_MAGIC:
    case RAMFS_MAGIC:
        trait->read = trait->write = PLAINLY;
        break;
    case EXT4_SUPER_MAGIC:
    case XFS_MAGIC:
    case BTRFS_SUPER_MAGIC:
    case OVERLAYFS_SUPER_MAGIC:
        trait->may_block_in_write = true;
        break;
    }
}

/* Nothing that was learned is lost when it is still the same file. */
static void look_up(FileTrait *trait, int fd)
{
    FileTrait found = { .fd = fd, .uses_left = TRAIT_USES };
    int flags = fcntl(fd, F_GETFL);
    struct statfs file_system;
    struct stat st;

    if (flags >= 0 && fstat(fd, &st) == 0 && fstatfs(fd, &file_system) == 0) {
        found.direct = flags & O_DIRECT;
        found.device = st.st_dev;
        found.inode = st.st_ino;
        if (!found.direct && S_ISREG(st.st_mode)) {
            expect(&found, (unsigned)file_system.f_type);
        } else if (!found.direct && S_ISBLK(st.st_mode)) {
            found.read = found.write = NOWAIT;
        }
    }
    if (trait->fd == fd && trait->direct == found.direct && trait->device == found.device &&
        trait->inode == found.inode) {
        trait->uses_left = TRAIT_USES;
    } else {
        *trait = found;
    }
}

static FileTrait *trait_of(EventLoop *loop, int fd)
{
    FileTrait *trait;

    if (G_UNLIKELY(!loop->traits)) {
        loop->traits = g_new0(FileTrait, TRAIT_SLOTS);
        for (int i = 0; i < TRAIT_SLOTS; i++) {
            loop->traits[i].fd = -1;
        }
    }
    trait = &loop->traits[(unsigned)fd % TRAIT_SLOTS];
    if (G_UNLIKELY(trait->fd != fd || trait->uses_left == 0)) {
        look_up(trait, fd);
    }
    trait->uses_left--;
    return trait;
}

/* Who finds everything in the cache never has to wait; he lets others run all the same. */
static void coroutine_fn take_turns(EventLoop *loop)
{
    while (G_UNLIKELY(loop->bytes_in_place > BYTES_PER_ITERATION)) {
        coroutine_pause();
    }
}

static int64_t total(const struct iovec *iov, int niov)
{
    int64_t bytes = 0;

    for (int i = 0; i < niov; i++) {
        bytes += (int64_t)iov[i].iov_len;
    }
    return bytes;
}

/* A refused flag is not known to the file system or the kernel. */
static bool is_refusal(int err)
{
    return err == EOPNOTSUPP || err == EINVAL || err == ENOSYS;
}

/* Whether to try, after so many misses. */
static bool feels_lucky(Luck *luck)
{
    if (luck->to_skip) {
        luck->to_skip--;
        return false;
    }
    return true;
}

/* Learn from a try that returned `count` and set errno. Returns what to do from now on. */
static InPlace learn(Luck *luck, InPlace now, ssize_t count)
{
    if (count >= 0) {
        luck->misses = 0;
    } else if (errno == EAGAIN) {
        luck->misses = MIN(luck->misses + 1, MISSES_MAX);
        luck->to_skip = (1U << luck->misses) - 1;
    } else if (is_refusal(errno)) {
        return NEVER;
    }
    return now;
}

/* Whether that did it; the count is then in *ret_count. Any failure is the backend's to tell. */
static bool read_in_place(EventLoop *loop, const IoRequest *req, ssize_t *ret_count)
{
    FileTrait *trait = trait_of(loop, req->fd);

    if (trait->read == NEVER || total(req->iov, req->niov) > IN_PLACE_READ_MAX) {
        return false;
    }
    if (trait->read == PLAINLY) {
        *ret_count = preadv(req->fd, req->iov, req->niov, req->offset);
        return *ret_count >= 0;
    }
    if (!feels_lucky(&trait->read_luck) ||
        (event_loop_has_uring(loop) && loop->reads_in_place++ >= READS_PER_BATCH)) {
        return false;
    }
    *ret_count = preadv2(req->fd, req->iov, req->niov, req->offset, RWF_NOWAIT);
    trait->read = learn(&trait->read_luck, trait->read, *ret_count);
    return *ret_count >= 0;
}

/* How often the thread has given up the processor by itself. */
static long voluntary_switches(void)
{
    struct rusage usage;

    return getrusage(RUSAGE_THREAD, &usage) == 0 ? usage.ru_nvcsw : 0;
}

/* A running median: up by a part of itself for each that took longer, down for each other. */
static void note_cost(FileTrait *trait, int64_t took_ns)
{
    int64_t step = MAX(trait->write_cost_ns / COST_STEPS, COST_STEP_MIN);

    trait->write_cost_ns += took_ns > trait->write_cost_ns ? step : -step;
}

/* Whether the kernel's thread for this file had better do a write. A long one always takes a
 * while. While it has short ones to do, others follow them: two threads would only wait for each
 * other at the file. */
static bool belongs_elsewhere(EventLoop *loop, FileTrait *trait, int64_t bytes)
{
    if (bytes > SHORT_WRITE_MAX) {
        return event_loop_has_uring(loop) && loop->ready.n >= MIN_READY;
    }
    if (trait->write_cost_ns < COSTLY_WRITE_NS || !event_loop_has_uring(loop) ||
        (!loop->writes_away && loop->ready.n < MIN_READY)) {
        return false;
    }
    trait->write_cost_ns -= trait->write_cost_ns / COST_FADES;
    return true;
}

static void note_slow_write(FileTrait *trait, int64_t end)
{
    if (trait->slowness) {
        trait->write_pause_ns = CLAMP(2 * trait->write_pause_ns, PAUSE_MIN_NS, PAUSE_MAX_NS);
        trait->write_pause_end_ns = end + trait->write_pause_ns;
    }
    trait->slowness = SLOWNESS;
}

/* Write plainly, and judge by the time it took whether that is wise. */
static ssize_t write_timed(FileTrait *trait, const IoRequest *req, int64_t bytes)
{
    int64_t start = event_loop_now_ns(), end;
    int64_t slow_ns = SLOW_WRITE_NS + bytes / COPY_BYTES_NS;
    bool suspicious = trait->slowness;
    long switches = 0;
    ssize_t count;

    if (start < trait->write_pause_end_ns) {
        return -1;
    }
    if (G_UNLIKELY(suspicious)) {
        switches = voluntary_switches();
    }
    count = pwritev(req->fd, req->iov, req->niov, req->offset);
    end = event_loop_now_ns();
    if (bytes <= SHORT_WRITE_MAX) {
        note_cost(trait, end - start);
    }
    if (G_UNLIKELY(end - start > slow_ns) && (!suspicious || voluntary_switches() != switches)) {
        note_slow_write(trait, end);
    } else if (trait->slowness && --trait->slowness == 0) {
        trait->write_pause_ns = 0;
    }
    return count;
}

static bool write_in_place(EventLoop *loop, IoRequest *req, ssize_t *ret_count)
{
    FileTrait *trait = trait_of(loop, req->fd);
    int64_t bytes = total(req->iov, req->niov);

    *ret_count = -1;
    if (req->flags || bytes > IN_PLACE_WRITE_MAX) {
        return false;
    }
    if (trait->write == NOWAIT && feels_lucky(&trait->write_luck)) {
        *ret_count = pwritev2(req->fd, req->iov, req->niov, req->offset, RWF_NOWAIT);
        trait->write = learn(&trait->write_luck, trait->write, *ret_count);
    }
    if (*ret_count < 0 && (trait->write == PLAINLY || trait->may_block_in_write) &&
        ((req->offset | bytes) & (PAGE - 1)) == 0) {
        req->elsewhere = belongs_elsewhere(loop, trait, bytes);
        if (req->elsewhere) {
            return false;
        }
        *ret_count = write_timed(trait, req, bytes);
    }
    return *ret_count >= 0;
}

static ssize_t coroutine_fn write_elsewhere(EventLoop *loop, IoRequest *req)
{
    ssize_t ret;

    loop->writes_away++;
    ret = io_perform(req);
    loop->writes_away--;
    return ret;
}

ssize_t coroutine_fn co_io_preadv(int fd, const struct iovec *iov, int niov, int64_t offset)
{
    IoRequest req = {
        .kind = IO_READ, .fd = fd, .iov = iov, .niov = MIN(niov, IOV_MAX), .offset = offset
    };
    EventLoop *loop = event_loop_current();
    ssize_t count;

    if (offset < 0) {
        return -EINVAL; /* -1 would mean the descriptor's own position */
    }
    take_turns(loop);
    if (read_in_place(loop, &req, &count)) {
        loop->bytes_in_place += count;
        return count;
    }
    return io_perform(&req);
}

ssize_t coroutine_fn co_io_pwritev(int fd, const struct iovec *iov, int niov, int64_t offset,
                                   int rw_flags)
{
    IoRequest req = { .kind = IO_WRITE,
                      .fd = fd,
                      .iov = iov,
                      .niov = MIN(niov, IOV_MAX),
                      .offset = offset,
                      .flags = rw_flags };
    EventLoop *loop = event_loop_current();
    ssize_t count;

    if (offset < 0) {
        return -EINVAL; /* -1 would mean the descriptor's own position */
    }
    take_turns(loop);
    if (write_in_place(loop, &req, &count)) {
        loop->bytes_in_place += count;
        return count;
    }
    return req.elsewhere ? write_elsewhere(loop, &req) : io_perform(&req);
}

int coroutine_fn co_io_fdatasync(int fd)
{
    IoRequest req = { .kind = IO_FDATASYNC, .fd = fd };

    return (int)io_perform(&req);
}

int coroutine_fn co_io_fallocate(int fd, int mode, int64_t offset, int64_t bytes)
{
    IoRequest req = {
        .kind = IO_FALLOCATE, .fd = fd, .flags = mode, .offset = offset, .bytes = bytes
    };

    return (int)io_perform(&req);
}
