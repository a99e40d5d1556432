/* SPDX-License-Identifier: MIT */
/*
 * What the command line tools have in common: their beginning and end, and how they talk.
 *
 * Messages go to standard error and begin with the program's own name, errors of libraries as well.
 * Standard output is written before them, so that a terminal shows both in their order.
 */
#ifndef MERINO_TOOLS_TOOL_H
#define MERINO_TOOLS_TOOL_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

/* `argv[0]` becomes the program's name without folders. The block layer is ready afterwards. */
void tool_init(char **argv);
/* Ends all jobs and closes all nodes. Returns the program's exit status: `status`, or a failure
 * when what it should have printed got lost. */
int tool_done(int status);

/* "NAME: text". */
void tool_error(const char *format, ...) G_GNUC_PRINTF(1, 2);
/* "NAME: warning: text". */
void tool_warn(const char *format, ...) G_GNUC_PRINTF(1, 2);
/* "NAME: text: the error", with its advice; the error is freed. `format` NULL: only the error. */
void tool_report(GError *error, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* A size as an argument: at least 0 and below 2^63, with a suffix if wanted. -1 with a message that
 * says it is of a `what`. */
int64_t tool_parse_size(const char *what, const char *text);

/* "196 KiB", "0.977 MiB", "512 B": three digits. Caller frees. */
char *tool_format_size(uint64_t bytes);

/* object-add, from the command line; false when it is printed what is wrong. */
bool tool_add_object(const char *text);

/* Progress as a percentage, rewritten in its line. `fraction` is 0 to 1. */
void tool_progress(double fraction);
void tool_progress_end(void);

#endif
