/* SPDX-License-Identifier: MIT */
/*
 * Making images as tools do: from a file name, a format and an option list.
 */
#ifndef MERINO_TOOLS_CREATE_IMAGE_H
#define MERINO_TOOLS_CREATE_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct ImageCreation {
    const char *filename;
    const char *format;
    const char *options;      /* of -o, joined; or NULL */
    const char *backing_file; /* or NULL */
    const char *backing_fmt;  /* or NULL */
    int64_t size;             /* -1: the options', or the backing file's */
    bool blind;               /* do not look at the backing file */
    bool quiet;
} ImageCreation;

/* Print what is to be made, and make it. False when it is printed what went wrong. */
bool image_create(const ImageCreation *creation);

/* Print the options there are; `filename` may be NULL. */
bool image_create_help(const char *format, const char *filename);

#endif
