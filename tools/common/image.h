/* SPDX-License-Identifier: MIT */
/*
 * Opening images as the tools' command lines name them.
 */
#ifndef MERINO_TOOLS_IMAGE_H
#define MERINO_TOOLS_IMAGE_H

#include "block/backend.h"

typedef struct ImageSource {
    const char *name;   /* a file name, or with `image_opts` options of a node */
    const char *format; /* or NULL: the image decides */
    const char *cache;  /* a mode as image_cache_is_valid() knows it; NULL: writeback */
    bool image_opts;    /* --image-opts */
    bool writable;      /* and may be resized */
    bool force_share;   /* -U: read while others write */
    bool no_backing;    /* as if it had no backing file */
    bool for_check;     /* to be checked, whatever is wrong with it; see node_open_for_check() */
    bool quiet;         /* no warnings */
} ImageSource;

/* NULL when it is printed what went wrong. To be freed by backend_free(). */
BlockBackend *image_open(const ImageSource *source);

/* The same with the error for the caller: without "Could not open 'NAME': " in front. */
BlockBackend *image_try_open(const ImageSource *source, GError **error);

bool image_cache_is_valid(const char *mode);

#endif
