/* SPDX-License-Identifier: MIT */
/*
 * What a guest may find on its disk after a loss of power.
 *
 * Each sector is written whole, with a number of the write's own all over it (0: zeroes), and by
 * one request at a time. A write that had ended before a flush began that ended before the loss
 * must be there unless a later one is; one that had not may be there. A write that failed, and a
 * discard, may also have left everything as it was. The disk's size is told of in the same way.
 */
#ifndef MERINO_TESTS_CRASH_MODEL_H
#define MERINO_TESTS_CRASH_MODEL_H

#include "crash-disk.h"

typedef struct CrashModel CrashModel;

/* A disk of `size` bytes, with `max` at most later; in the beginning each sector has its
 * crash_base_number(). */
CrashModel *crash_model_new(int64_t size, int64_t max);
void crash_model_free(CrashModel *model);

/* A guest's write from its beginning to its end. `optional`: it need not change anything. Returns
 * what the end is told with. */
typedef struct GuestWrite {
    int64_t offset, bytes;
    uint64_t number;
    uint64_t begin, end;
    bool optional;
    bool durable;  /* as if a flush of its own had followed */
    bool uncovers; /* it may show what lies beneath */
} GuestWrite;

GuestWrite *crash_model_write(CrashModel *model, int64_t offset, int64_t bytes, uint64_t number,
                              bool optional);
void crash_model_written(CrashModel *model, GuestWrite *write, bool ok);

/* The same for a resize; what is cut off is written with zeroes meanwhile, or shows the backing
 * file. */
GuestWrite *crash_model_resize(CrashModel *model, int64_t old, int64_t size);
void crash_model_resized(CrashModel *model, GuestWrite *resize, bool ok);

/* A guest's flush that went well. */
void crash_model_flushed(CrashModel *model, uint64_t begin, uint64_t end);

/* The disk failed while it was closed: what was not flushed may be lost. */
void crash_model_forgets(CrashModel *model);

void crash_fill(uint8_t *buf, int64_t bytes, uint64_t number);
/* The number all over a sector; false when there are several. */
bool crash_number(const uint8_t *sector, uint64_t *ret_number);

/* What the guest may expect grows with this number. */
uint64_t crash_model_demands(const CrashModel *model, uint64_t cut);

/* Whether this may be on the disk when power is lost at `cut`; prints what is wrong. */
bool crash_model_allows(CrashModel *model, uint64_t cut, const uint8_t *content, int64_t size);

#endif
