/* SPDX-License-Identifier: MIT */
/*
 * Images on the disks of crash-disk.h: made, opened and closed as by blockdev-create, -add and
 * -del, and looked at as a whole.
 */
#ifndef MERINO_TESTS_CRASH_IMAGE_H
#define MERINO_TESTS_CRASH_IMAGE_H

#include "block/backend.h"
#include "block/driver.h"
#include "crash-disk.h"

/* A kind of image. */
typedef struct CrashShape {
    const char *name;
    const char *create; /* members of BlockdevCreateOptions beside driver, file and size */
    const char *open;   /* further options of the node, each with a comma before it, or NULL */
    int64_t size;       /* of the disk at first */
    int64_t cluster;
    int version;       /* 0: 3 */
    int refcount_bits; /* 0: 16 */
    int64_t base;      /* bytes of the backing file; 0: none */
    bool data_file;    /* external */
    bool extended_l2;
    bool bits_only; /* the guest's bytes are too many to be looked at */
    int stride;     /* of the scripted workload's moments one in so many is tried; 0: 1 */
} CrashShape;

void crash_image_init(void);

/* A new image. Caller owns it. */
CrashContent *crash_image_create(const CrashShape *shape);

/* The image that is on the disks, as node 'image' over 'disk', with a user that reads and writes.
 * NULL with an error. */
BlockBackend *crash_image_open(const CrashShape *shape, GError **error);
void crash_image_close(BlockBackend *user);
/* blockdev-reopen; the user gives up writing while the image is read-only. */
bool crash_image_reopen(const CrashShape *shape, BlockBackend *user, bool read_only);

/* All of the guest's bytes. Caller frees; NULL when they cannot be read. */
uint8_t *crash_image_read(BlockBackend *user);

/*
 * The format's check, with findings printed: corruptions and what could not be looked at. In a
 * version 2 image entries that lack the copied flag are mended instead (Q5: nothing could warn of
 * them).
 */
int64_t crash_image_check(const CrashShape *shape, BlockBackend *user);
/* The same by qemu-img where it is installed (else 0), on this content; an image that says it is
 * dirty is mended by it before, as it would be on opening. */
int64_t crash_image_check_by_qemu(const CrashShape *shape, const CrashContent *content);

#endif
