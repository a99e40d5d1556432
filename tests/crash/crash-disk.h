/* SPDX-License-Identifier: MIT */
/*
 * A disk that remembers everything that was done to it, so that the disk after a loss of power can
 * be had for any moment.
 *
 * It takes the place of the driver `null-co`. Time is counted in ticks: whatever begins or ends
 * takes one (crash_tick()). What is safe at a tick is what had ended before a flush began that
 * ended by that tick; everything else that had begun by then may be there, or not, or in part, in
 * any mixture.
 *
 * All on the main loop.
 */
#ifndef MERINO_TESTS_CRASH_DISK_H
#define MERINO_TESTS_CRASH_DISK_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define CRASH_SECTOR 512
#define CRASH_NEVER  UINT64_MAX

typedef enum DiskOpKind {
    DISK_WRITE, /* also zero-writes and discards */
    DISK_RESIZE,
    DISK_FLUSH,
} DiskOpKind;

typedef struct DiskOp {
    DiskOpKind kind;
    int64_t offset; /* or the new size */
    int64_t bytes;
    uint8_t *data;       /* NULL: zeroes */
    uint64_t begin, end; /* ticks; `end` is CRASH_NEVER while it is under way */
    bool failed;
} DiskOp;

/* What becomes of the writes that are not safe. */
typedef enum CrashMode {
    CRASH_KEEP,  /* all are there */
    CRASH_DROP,  /* none is */
    CRASH_SOME,  /* some are */
    CRASH_TORN,  /* some sectors of some are */
    CRASH_MODES, /* how many there are */
} CrashMode;

void crash_disk_register(void);

uint64_t crash_tick(void);
uint64_t crash_now(void); /* the tick that was taken last */

/* What the disk holds when it is opened next; copied. Forgets what was done before. `seed` decides
 * in which order requests that are under way together come to their end. */
void crash_disk_load(const GByteArray *content, uint32_t seed);
/* What it holds now. Caller owns it. */
GByteArray *crash_disk_content(void);
/* What was done since it was loaded: of DiskOp, in the order of their beginning. Borrowed. */
const GPtrArray *crash_disk_ops(void);

/* The n-th write, resize or flush from now on fails, once, with EIO; -1: none does. */
void crash_disk_fail(int64_t n);
bool crash_disk_has_failed(void);

/* What is there when power is lost at `cut`: `before` is what was loaded. Caller owns it. */
GByteArray *crash_disk_after(const GByteArray *before, const GPtrArray *ops, uint64_t cut,
                             CrashMode mode, GRand *random);

#endif
