/* SPDX-License-Identifier: MIT */
/*
 * merino-img rebase: what an image has to hold itself, so that it shows the same over another
 * backing file.
 */
#ifndef MERINO_IMG_REBASE_COPY_H
#define MERINO_IMG_REBASE_COPY_H

#include "block/backend.h"

/*
 * Copy from the backing file of `image` into it what `target` shows otherwise (NULL: nothing but
 * zeroes), and flush. What the image shows does not change, whenever this ends. `progress`: print
 * it. 0, or -errno with a message printed. Outside of coroutines.
 */
int rebase_copy(BlockBackend *image, BlockBackend *target, bool progress);

#endif
