/* SPDX-License-Identifier: MIT */
/*
 * merino-img: what its commands share.
 *
 * A command gets its arguments with its own name as the first, and returns the program's exit
 * status; whatever went wrong it has printed.
 */
#ifndef MERINO_IMG_H
#define MERINO_IMG_H

#include "image.h"

#include <getopt.h>

int img_amend(int argc, char **argv);
int img_bitmap(int argc, char **argv);
int img_check(int argc, char **argv);
int img_compare(int argc, char **argv);
int img_create(int argc, char **argv);
int img_info(int argc, char **argv);
int img_map(int argc, char **argv);
int img_rebase(int argc, char **argv);
int img_resize(int argc, char **argv);
int img_snapshot(int argc, char **argv);

/* The values of long options that have no letter. */
enum {
    OPTION_OBJECT = 256,
    OPTION_IMAGE_OPTS,
    OPTION_OUTPUT,
    OPTION_BACKING_CHAIN,
    OPTION_PREALLOCATION,
    OPTION_SHRINK,
    OPTION_FORCE,
    OPTION_ADD,
    OPTION_REMOVE,
    OPTION_CLEAR,
    OPTION_ENABLE,
    OPTION_DISABLE,
    OPTION_MERGE,
};

/* What every command has. */
#define LONG_OPTIONS_ALL                                                                           \
    { "help", no_argument, NULL, 'h' },                                                            \
    {                                                                                              \
        "object", required_argument, NULL, OPTION_OBJECT                                           \
    }

/* The next option of the command line, or -1. Help, unknown options and --object are dealt
 * with here. `letters` begins with a colon. */
int img_getopt(int argc, char **argv, const char *letters, const struct option *options);

/* Take in what tells how an image is opened: -f, -q, -U, --image-opts. False for other options. */
bool img_take_source_option(int option, ImageSource *source);

/* Print what is wrong with the command line, and exit. */
void img_usage_error(const char *format, ...) G_GNUC_PRINTF(1, 2) G_GNUC_NORETURN;

/* --output=human or json: whether JSON is wanted; exits at anything else. */
bool img_output_is_json(const char *arg);

/* The one file name that is left, or exit. */
const char *img_only_filename(int argc, char **argv);

/* As queries print it: indented JSON and a newline. Consumes the value. */
typedef struct json_t json_t;
void img_print_json(json_t *value);

/* A list of snapshots as people read it (info.c). */
void img_print_snapshots(const SnapshotInfoList *list);

/* What a `-o` adds to the text of earlier ones, which it frees; NULL with a message when it is no
 * list of options. */
char *img_join_options(char *options, const char *more);

void img_print_help(void);

#endif
