/* SPDX-License-Identifier: MIT */
#include "tool.h"

#include "block/builtins.h"
#include "block/job.h"
#include "block/node.h"
#include "qapi/keyval.h"
#include "qapi/qapi-codec.h"
#include "qapi/qapi-commands.h"
#include "util/error.h"
#include "util/event-loop.h"
#include "util/size.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static GSource *loop_source;

void tool_init(char **argv)
{
    g_autofree char *name = g_path_get_basename(argv[0]);

    g_set_prgname(name);
    argv[0] = (char *)g_get_prgname(); /* for the messages of getopt */
    block_builtins_register();
    loop_source = event_loop_attach(event_loop_main());
}

int tool_done(int status)
{
    job_cancel_all();
    node_close_all();
    g_source_destroy(loop_source);
    g_source_unref(loop_source);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        tool_error("Could not write to standard output: %s", g_strerror(errno));
        return status ? status : EXIT_FAILURE;
    }
    return status;
}

/* --- messages --- */

static void print_message(const char *kind, const char *text)
{
    fflush(stdout);
    fprintf(stderr, "%s: %s%s\n", g_get_prgname(), kind, text);
}

void tool_error(const char *format, ...)
{
    g_autofree char *text = NULL;
    va_list args;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    print_message("", text);
}

void tool_warn(const char *format, ...)
{
    g_autofree char *text = NULL;
    va_list args;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    print_message("warning: ", text);
}

void tool_report(GError *error, const char *format, ...)
{
    g_autofree char *text = NULL;
    va_list args;

    if (!format) {
        print_message("", error->message);
    } else {
        va_start(args, format);
        text = g_strdup_vprintf(format, args);
        va_end(args);
        tool_error("%s: %s", text, error->message);
    }
    g_error_free(error);
}

/* --- sizes --- */

int64_t tool_parse_size(const char *what, const char *text)
{
    uint64_t size = 0;
    int ret = size_parse(text, &size);

    if (ret == 0 && size <= INT64_MAX) {
        return (int64_t)size;
    }
    if (ret != -EINVAL) {
        tool_error("Invalid %s specified. Must be between 0 and %" G_GINT64_FORMAT ".", what,
                   INT64_MAX);
    } else {
        tool_error("Invalid %s specified. You may use k, M, G, T, P or E suffixes for", what);
        tool_error("kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.");
    }
    return -1;
}

char *tool_format_size(uint64_t bytes)
{
    static const char *const units[] = { "", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei" };
    double value = (double)bytes;
    size_t unit = 0;

    while (value >= 1000 && unit + 1 < G_N_ELEMENTS(units)) {
        value /= 1024;
        unit++;
    }
    return g_strdup_printf("%0.3g %sB", value, units[unit]);
}

/* --- objects --- */

bool tool_add_object(const char *text)
{
    GError *error = NULL;
    g_autoptr(ObjectOptions) options =
        option_decode(&qapi_type_ObjectOptions, text, "qom-type", &error);

    if (!options || !qmp_object_add(options, &error)) {
        tool_report(error, NULL);
        return false;
    }
    return true;
}

/* --- progress --- */

void tool_progress(double fraction)
{
    printf("    (%3.2f/100%%)\r", fraction * 100);
    fflush(stdout);
}

void tool_progress_end(void)
{
    printf("\n");
}
