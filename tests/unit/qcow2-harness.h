/* SPDX-License-Identifier: MIT */
/*
 * For tests of qcow2 images: images that qemu-img makes and judges, and a twin in memory that says
 * what the guest must read.
 *
 * Tests that need qemu-img begin with qcow2_need_qemu(), which skips where it is missing.
 */
#ifndef MERINO_TESTS_QCOW2_HARNESS_H
#define MERINO_TESTS_QCOW2_HARNESS_H

#include "io-harness.h"

/* io_harness_init() without disks in memory, and the driver. */
void qcow2_harness_init(int *argc, char ***argv);

/* False, and the test is skipped: there is no qemu-img. */
bool qcow2_need_qemu(void);

/* What qemu-img prints for a command line, and whether it succeeds. Caller frees. */
char *qemu_img(bool *ret_ok, const char *format, ...) G_GNUC_PRINTF(2, 3);
/* The same; it must succeed. */
void qemu_img_do(const char *format, ...) G_GNUC_PRINTF(1, 2);

/* An image `name`.qcow2 in the temporary folder and a node of that name on it. */
typedef struct Qcow2Disk {
    const char *name;
    const char *create_options; /* of qemu-img create -o */
    const char *node_options;   /* further options in JSON, each with a comma before it; "" */
    int64_t size;
    uint8_t *twin;
    char *path;
    BlockNode *node; /* while open */
    BlockBackend *user;
} Qcow2Disk;

/* Make the image and open it. */
void qcow2_disk_create(Qcow2Disk *disk, const char *name, int64_t size, const char *create_options,
                       const char *node_options);
void qcow2_disk_open(Qcow2Disk *disk);
void qcow2_disk_close(Qcow2Disk *disk);
void qcow2_disk_done(Qcow2Disk *disk); /* closes; the files stay until the end */

/* Requests that must succeed, also done to the twin. */
void disk_fill(Qcow2Disk *disk, int64_t offset, int64_t bytes, int byte);
void disk_noise(Qcow2Disk *disk, GRand *random, int64_t offset, int64_t bytes, unsigned flags);
void disk_zero(Qcow2Disk *disk, int64_t offset, int64_t bytes, unsigned flags);
void disk_flush(Qcow2Disk *disk);
/* What is read is what the twin says. */
void disk_assert_range(Qcow2Disk *disk, int64_t offset, int64_t bytes);
void disk_assert(Qcow2Disk *disk);

/* The image is closed: qemu-img finds no fault and at most so many leaked clusters, and reads what
 * the twin says. */
void disk_judge(Qcow2Disk *disk, int max_leaks);
/* The lines of qemu-img map --output=json. Caller frees. */
char *disk_map(Qcow2Disk *disk);

#endif
