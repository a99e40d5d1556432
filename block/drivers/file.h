/* SPDX-License-Identifier: MIT */
/*
 * The state that the files of the `file` and `host_device` drivers share.
 *
 * Requests use `fd`, `device`, `sector` and the atomics; the control plane changes the others, and
 * `fd`, while the node is drained.
 */
#ifndef MERINO_DRIVERS_FILE_H
#define MERINO_DRIVERS_FILE_H

#include "block/driver.h"

/* A file's size as a disk is a multiple of this; what is missing at its end reads as zeroes. */
#define FILE_SECTOR 512

/* The largest block that is tried for direct I/O, and what is assumed when nobody can tell. */
#define FILE_DIRECT_MAX 4096

/* A range that is known to hold data, from the last look for holes. */
typedef struct DataExtent {
    GMutex lock; /* guards begin and end */
    int64_t begin, end;
} DataExtent;

typedef struct FileState {
    int fd;
    char *path;
    bool device;    /* a block or character device */
    bool writable;  /* fd is open for writing */
    bool direct;    /* fd bypasses the page cache */
    int64_t sector; /* of a block device, bytes; else FILE_SECTOR */

    /* Image locks (file-lock.c): what the parents use and do not share, as perm bits, and the bytes
     * that `fd` has locked, which are more while a change is being prepared. */
    bool use_locks;
    unsigned perm, unshared;
    unsigned locked_perm, locked_unshared;

    atomic_bool no_punch_hole, no_zero_range; /* storage refused it once */
    atomic_bool flush_failed;                 /* what the page cache holds is not to be trusted */
    bool no_holes;                            /* storage cannot tell them */
    DataExtent data;
} FileState;

/* --- file.c --- */

/* How a descriptor is open. */
typedef struct FileMode {
    bool writable;
    bool direct;
} FileMode;

/* Open `path`, and check that it is what the driver expects. Returns the descriptor, or -1 with an
 * error. */
int file_open_fd(const BlockNode *node, const char *path, FileMode mode, GError **error);

/* Set the limits from what the descriptor says of alignment and holes. */
void file_probe(BlockNode *node);
int64_t file_storage_size(const FileState *file); /* or -errno */

/* --- file-lock.c --- */

/* Whether the system has locks that belong to a descriptor. */
bool file_locks_supported(int fd);
/* Lock on `fd` what `file` has locked on its own. */
bool file_lock_same(const FileState *file, int fd, GError **error);
/* Take these locks from a descriptor that another replaces. */
void file_lock_none(const FileState *file, int fd);
/* Lock for the new permissions as well, and fail when somebody else's stand against them. */
bool file_lock_prepare(FileState *file, unsigned perm, unsigned unshared, GError **error);
/* Unlock all but these. */
void file_lock_keep(FileState *file, unsigned perm, unsigned unshared);

/* --- file-perm.c --- */

bool file_set_perm(BlockNode *node, unsigned perm, unsigned shared, UndoStack *undo,
                   GError **error);
bool file_reopen_prepare(ReopenState *state, UndoStack *undo, GError **error);
FileMode file_mode(bool read_only, bool auto_read_only, bool direct, unsigned perm);

/* --- file-io.c --- */

int coroutine_fn file_co_preadv(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                unsigned flags);
int coroutine_fn file_co_pwritev(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                 unsigned flags);
int coroutine_fn file_co_pwrite_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                       unsigned flags);
int coroutine_fn file_co_pdiscard(BlockNode *node, int64_t offset, int64_t bytes);
int coroutine_fn file_co_flush(BlockNode *node);

/* --- file-create.c --- */

int coroutine_fn file_co_create(const BlockdevCreateOptions *options, GError **error);
/* Give a file another size; what is more is allocated as `mode` says. Blocks; nobody else uses the
 * descriptor meanwhile. When it cannot grow it is as long as before, if that can be helped.
 * Returns 0, or -errno with an error in words. */
int file_resize(int fd, int64_t old_size, int64_t size, PreallocMode mode, GError **error);

/* --- file-status.c --- */

int coroutine_fn file_co_block_status(BlockNode *node, int64_t offset, int64_t bytes,
                                      BlockStatus *ret_status);
/* The range may have become a hole. Any thread. */
void file_forget_data(FileState *file);

#endif
