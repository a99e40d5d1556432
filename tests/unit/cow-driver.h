/* SPDX-License-Identifier: MIT */
/*
 * A small format with backing files, for tests of what the core does for such formats. It takes the
 * name and the options of qcow2.
 *
 * An image begins with four lines: "COW", the disk's size, the name of its backing file and that
 * file's format (empty lines for none). From COW_MAP on there is a byte for each block of the disk,
 * which is not 0 when the image has the block; from COW_DATA on lie the blocks.
 */
#ifndef MERINO_TESTS_COW_DRIVER_H
#define MERINO_TESTS_COW_DRIVER_H

#include "block/driver.h"

#define COW_MAP   4096
#define COW_DATA  65536
#define COW_BLOCK 4096

void cow_driver_register(void);

/* Write an empty image; the names may be NULL. */
void cow_make(const char *path, int64_t size, const char *backing, const char *format);

#endif
