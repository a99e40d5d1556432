/* SPDX-License-Identifier: MIT */
/*
 * Images on the disk of crash-disk.h: made, opened and closed as by blockdev-create, -add and -del,
 * and looked at as a whole.
 */
#ifndef MERINO_TESTS_CRASH_IMAGE_H
#define MERINO_TESTS_CRASH_IMAGE_H

#include "block/backend.h"
#include "block/driver.h"

void crash_image_init(void);

/* A new image; `options` are the members of BlockdevCreateOptions beside driver and file, as JSON
 * with single quotes for double ones. Caller owns it. */
GByteArray *crash_image_create(const char *options);

/* The image that is on the disk, as node 'image' over 'disk', with a user that reads and writes.
 * NULL with an error. */
BlockBackend *crash_image_open(GError **error);
void crash_image_close(BlockBackend *user);

/* All of the guest's bytes. Caller frees; NULL when they cannot be read. */
uint8_t *crash_image_read(BlockBackend *user);

/* The format's check, with findings printed: corruptions and what could not be looked at. */
int64_t crash_image_check(BlockBackend *user, unsigned fix);
/* The same by qemu-img where it is installed (else 0), on this content; an image that says it is
 * dirty is mended by it before, as it would be on opening. */
int64_t crash_image_check_by_qemu(const GByteArray *content);

/* A snapshot inside of the image; false when that failed. */
bool crash_image_snapshot(BlockBackend *user, const char *name);
bool crash_image_delete_snapshots(BlockBackend *user);

#endif
