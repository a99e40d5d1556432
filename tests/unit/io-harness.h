/* SPDX-License-Identifier: MIT */
/*
 * For tests of requests: nodes from JSON, requests as plain calls, I/O threads, a temporary folder,
 * and a disk in memory that does as the test says.
 *
 * io_harness_init() registers the real raw, copy-before-write and snapshot-access. With
 * `memory_disks` the driver null-co is the disk in memory; else it, null-aio, file and
 * host_device are the real ones.
 */
#ifndef MERINO_TESTS_IO_HARNESS_H
#define MERINO_TESTS_IO_HARNESS_H

#include "block/backend.h"
#include "block/driver.h"
#include "util/event-loop.h"

/* The state of a disk in memory. Data starts as zeroes. The driver asserts that it gets
 * what its node's limits promise. */
typedef struct MemoryDisk {
    uint8_t *data;
    atomic_int reads, writes, zeroes, discards, flushes; /* calls of the driver */
    atomic_uint last_flags;                              /* of the last write or zero-write */
    atomic_long last_bytes;                              /* of the last read or write */
    atomic_int fail_writes;   /* positive errno for writes and zero-writes; 0: none */
    atomic_int fail_after;    /* so many more succeed first */
    atomic_int fail_reads;    /* positive errno */
    atomic_int refuse_zeroes; /* zero-writes are not supported */
    atomic_int lose_writes;   /* so many writes are not done, but said to be */
    bool reads_may_race;      /* with writes of the same bytes: nobody uses what was read */
    bool tells_zeroes;        /* block status finds blocks of zeroes */

    GMutex lock;
    bool hold_writes, hold_reads; /* requests wait */
    int held;                     /* how many do */
    CoQueue waiting;
} MemoryDisk;

#define MEMORY_DISK_BLOCK 4096 /* of block status */

void io_harness_init(int *argc, char ***argv, bool memory_disks);
int io_harness_run(void); /* g_test_run(), and nothing may be left */

/* A file of that name in a temporary folder, which goes at the end. Caller frees. */
char *temp_path(const char *name);
/* One of `size` bytes, all holes. */
char *temp_file(const char *name, int64_t size);
void run_shell(const char *format, ...) G_GNUC_PRINTF(1, 2);

/* blockdev-add, -reopen and -del in JSON with single quotes for double ones. */
BlockNode *add_node(const char *format, ...) G_GNUC_PRINTF(1, 2);
char *add_node_error(const char *format, ...) G_GNUC_PRINTF(1, 2);
char *reopen_error(const char *format, ...) G_GNUC_PRINTF(1, 2); /* NULL: it went well */
void delete_node(const char *node_name);
/* node_insert_filter(); `text` is changed. */
void insert_filter(char *text);

#define assert_text(allocated, text)                                                               \
    do {                                                                                           \
        g_autofree char *got_ = (allocated);                                                       \
        g_assert_cmpstr(got_, ==, text);                                                           \
    } while (0)

MemoryDisk *memory_disk(BlockNode *node);
void memory_disk_hold(MemoryDisk *disk, bool writes, bool reads);
/* Poll the main loop until so many requests are held. */
void memory_disk_wait_held(MemoryDisk *disk, int n);

/* A user of the node that shares everything. */
BlockBackend *open_user(BlockNode *node, unsigned perm);

/* Each byte of the range reads as the number of its cluster, counted from 1. */
void assert_numbers(BlockBackend *user, int64_t offset, int64_t bytes, int64_t cluster);

/* Requests from the main thread, which polls until they are done. */
int do_read(BlockBackend *user, int64_t offset, int64_t bytes, void *buf);
int do_write(BlockBackend *user, int64_t offset, int64_t bytes, const void *buf, unsigned flags);
int do_fill(BlockBackend *user, int64_t offset, int64_t bytes, int byte);
int do_zero(BlockBackend *user, int64_t offset, int64_t bytes, unsigned flags);
int do_discard(BlockBackend *user, int64_t offset, int64_t bytes);
int do_flush(BlockBackend *user);
int do_status(BlockBackend *user, int64_t offset, int64_t bytes, BlockStatus *ret);
/* All bytes of the range are this one. */
void assert_filled(BlockBackend *user, int64_t offset, int64_t bytes, int byte);

/* A request in the background, on the given loop. */
typedef struct AsyncWrite {
    BlockBackend *user;
    int64_t offset, bytes;
    int byte;
    int ret;
    atomic_bool done;
} AsyncWrite;

void start_write(AsyncWrite *write, EventLoop *loop, BlockBackend *user, int64_t offset,
                 int64_t bytes, int byte);
int finish_write(AsyncWrite *write);

/* Run `fn` in `n` coroutines spread over `n_threads` I/O threads, and wait until all have ended. */
typedef void WorkFn(int index, GRand *random);
typedef struct WorkerGroup WorkerGroup;
WorkerGroup *start_workers(int n, int n_threads, WorkFn *fn);
void finish_workers(WorkerGroup *group);
void run_workers(int n, int n_threads, WorkFn *fn);
/* From MERINO_TEST_SEED, or random; printed once. */
uint32_t test_seed(void);

#endif
