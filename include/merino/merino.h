/* SPDX-License-Identifier: MIT */
/*
 * libmerino: virtual machine disks with dirty bitmaps, in your own process.
 *
 * The thread that calls merino_init() becomes the control plane: every function here is called
 * from it. Disks are configured, and bitmaps, views, exports and transactions made, with the
 * commands of QMP through merino_qmp(); data goes through MerinoDisk. While your thread does
 * something else, exports on I/O threads go on; those on the main loop, timers and clients that
 * connect need merino_poll(). A program that runs GLib's default main context needs neither.
 *
 * Offsets and lengths are bytes, of any alignment. Functions that can fail return false or NULL and
 * put a message into *ret_error when it is not NULL; free it with merino_free(). Nothing here
 * exits or prints.
 */
#ifndef MERINO_MERINO_H
#define MERINO_MERINO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MERINO_EXPORT __attribute__((visibility("default")))

/* Start and end the library. At the end all exports and nodes are closed and flushed; open
 * MerinoDisks must be closed before. What object-add made stays, for the next start. */
MERINO_EXPORT bool merino_init(char **ret_error);
MERINO_EXPORT void merino_done(void);

/* "0.1.0" */
MERINO_EXPORT const char *merino_version(void);

/*
 * Run one QMP command: {"execute": "name", "arguments": {...}}. Returns the reply as one line of
 * JSON, {"return": ...} or {"error": {"class": ..., "desc": ...}}; free it with merino_free(). The
 * command takes effect before the call returns.
 */
MERINO_EXPORT char *merino_qmp(const char *request);

/* Receive QMP events, one line of JSON each, while control functions run. NULL: none. */
typedef void MerinoEventFn(const char *event, void *opaque);
MERINO_EXPORT void merino_set_event_handler(MerinoEventFn *fn, void *opaque);

/* Run what is ready of the control plane; with `block`, first wait until something is. */
MERINO_EXPORT void merino_poll(bool block);

MERINO_EXPORT void merino_free(void *memory);

/* --- data --- */

/* A user of a node that blockdev-add made. A writable disk needs a writable node. */
typedef struct MerinoDisk MerinoDisk;

MERINO_EXPORT MerinoDisk *merino_disk_open(const char *node_name, bool writable, char **ret_error);
MERINO_EXPORT void merino_disk_close(MerinoDisk *disk); /* NULL ok */
MERINO_EXPORT int64_t merino_disk_size(const MerinoDisk *disk);

/* Return 0, or a negative errno: -EIO also for a range outside of the disk. They wait until done.
 */
MERINO_EXPORT int merino_disk_read(MerinoDisk *disk, int64_t offset, void *buffer, size_t bytes);
MERINO_EXPORT int merino_disk_write(MerinoDisk *disk, int64_t offset, const void *buffer,
                                    size_t bytes);
MERINO_EXPORT int merino_disk_write_zeroes(MerinoDisk *disk, int64_t offset, int64_t bytes);
MERINO_EXPORT int merino_disk_discard(MerinoDisk *disk, int64_t offset, int64_t bytes);
MERINO_EXPORT int merino_disk_flush(MerinoDisk *disk);

/*
 * The first range at or after `offset` that is dirty in a bitmap of the disk's node. True with
 * *ret_offset and *ret_bytes; false at the end, and with *ret_error when there is no such bitmap
 * or it cannot be relied on (set *ret_error to NULL before to tell the two apart).
 */
MERINO_EXPORT bool merino_disk_next_dirty(MerinoDisk *disk, const char *bitmap, int64_t offset,
                                          int64_t *ret_offset, int64_t *ret_bytes,
                                          char **ret_error);

#ifdef __cplusplus
}
#endif

#endif
