/* SPDX-License-Identifier: MIT */
/*
 * The header as bytes: what header.c and header-write.c offer beyond qcow2.h.
 *
 * Control plane, or a coroutine while nobody else uses the header.
 */
#ifndef MERINO_QCOW2_HEADER_H
#define MERINO_QCOW2_HEADER_H

#include "qcow2.h"

/* QEMU writes names of features into images with clusters of at least this size. */
#define QCOW2_FEATURE_NAMES_MIN_CLUSTER 4096

/* What a loss of power leaves as it was or as it was to be, never a mixture. */
#define QCOW2_HEADER_SECTOR 512

/* How many entries an L1 table for a disk of `size` bytes needs. */
uint64_t qcow2_l1_entries_for(const Qcow2Header *header, int64_t size);

/* The range of a table lies in the file's address space and begins at a cluster. */
bool qcow2_table_range_ok(const Qcow2Header *header, uint64_t offset, uint64_t bytes);

/* Fails when the image has incompatible features that we do not know: names them. */
bool qcow2_header_check_features(const Qcow2Header *header, GError **error);

/* Where the snapshot table lies and how many entries it has can be. Not part of reading the header,
 * so that a check may mend them. */
bool qcow2_header_check_snapshots(const Qcow2Header *header, GError **error);

/* The bytes of the header, extensions and names, in whole sectors. Fails when they do not fit in
 * one cluster. */
uint8_t *qcow2_header_encode(const Qcow2Header *header, size_t *ret_bytes, GError **error);
/* The same without the names of features, in one sector. NULL: it does not fit. */
uint8_t *qcow2_header_encode_plain(const Qcow2Header *header);

/* A header with our own names of features and no extensions. */
void qcow2_header_init(Qcow2Header *header);

#endif
