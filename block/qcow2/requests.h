/* SPDX-License-Identifier: MIT */
/*
 * What requests do to one another's ranges: reads and writes as parts of other requests. The caller
 * is inside of a request (qcow2_request_begin) and does not hold `lock`.
 */
#ifndef MERINO_QCOW2_REQUESTS_H
#define MERINO_QCOW2_REQUESTS_H

#include "mapping.h"

/* Read guest data into vec[at, at + bytes). Beyond the end of the disk there are zeroes. */
int coroutine_fn qcow2_read(Qcow2 *q, int64_t guest, int64_t bytes, IoVector *vec, size_t at);
int coroutine_fn qcow2_read_buf(Qcow2 *q, int64_t guest, int64_t bytes, void *buf);

/* Write vec[at, at + bytes), allocating where it must. */
int coroutine_fn qcow2_write(Qcow2 *q, int64_t guest, int64_t bytes, IoVector *vec, size_t at,
                             unsigned flags);
/* The same with zeroes for data. */
int coroutine_fn qcow2_write_zero_data(Qcow2 *q, int64_t guest, int64_t bytes, unsigned flags);
/* Append pieces that are zeroes. */
void qcow2_add_zeroes(IoVector *vec, int64_t bytes);

/* compress.c: one cluster, read and unpacked into `buf`; a write of whole clusters. */
int coroutine_fn qcow2_read_compressed(Qcow2 *q, uint64_t entry, void *buf);
int coroutine_fn qcow2_write_compressed(Qcow2 *q, int64_t guest, int64_t bytes, IoVector *vec,
                                        unsigned flags);

/* zero.c: drop what whole clusters refer to, so that the backing file shows. Drained. */
int coroutine_fn qcow2_forget_clusters(Qcow2 *q, int64_t guest, int64_t bytes);
/* Whole clusters that shall read as zeroes, whatever it takes. */
int coroutine_fn qcow2_zero_clusters(Qcow2 *q, int64_t guest, int64_t bytes);

/* --- shrink-refcounts.c --- */

/* Give back the refcount blocks that count nothing, and the end of the table. Drained; what cannot
 * be written stays. */
void coroutine_fn qcow2_shrink_refcounts(Qcow2 *q);

#endif
