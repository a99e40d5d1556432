/* SPDX-License-Identifier: MIT */
/*
 * Names of images, as far as only block/core looks at them.
 */
#ifndef MERINO_CORE_IMAGE_NAME_H
#define MERINO_CORE_IMAGE_NAME_H

#include <stdbool.h>

/* Whether something with a colon stands before the first slash. */
bool image_name_has_protocol(const char *name);

#endif
