/* SPDX-License-Identifier: MIT */
#include "options.h"

#include "block/export.h"
#include "help.h"
#include "monitor/chardev.h"
#include "monitor/monitor.h"
#include "monitor/objects.h"
#include "qapi/keyval.h"
#include "qapi/qapi-codec.h"
#include "qapi/qapi-commands.h"
#include "util/error.h"

#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    OPTION_BLOCKDEV = 256,
    OPTION_CHARDEV,
    OPTION_DAEMONIZE,
    OPTION_EXPORT,
    OPTION_MONITOR,
    OPTION_NBD_SERVER,
    OPTION_OBJECT,
    OPTION_PIDFILE,
};

static const struct option long_options[] = {
    { "blockdev", required_argument, NULL, OPTION_BLOCKDEV },
    { "chardev", required_argument, NULL, OPTION_CHARDEV },
    { "daemonize", no_argument, NULL, OPTION_DAEMONIZE },
    { "export", required_argument, NULL, OPTION_EXPORT },
    { "help", no_argument, NULL, 'h' },
    { "monitor", required_argument, NULL, OPTION_MONITOR },
    { "nbd-server", required_argument, NULL, OPTION_NBD_SERVER },
    { "object", required_argument, NULL, OPTION_OBJECT },
    { "pidfile", required_argument, NULL, OPTION_PIDFILE },
    { "version", no_argument, NULL, 'V' },
    { NULL, 0, NULL, 0 },
};

/* --- what each option makes --- */

static bool apply_blockdev(const char *text, const ProcessOptions *process, GError **error)
{
    g_autoptr(BlockdevOptions) options =
        option_decode(&qapi_type_BlockdevOptions, text, "driver", error);

    return options && qmp_blockdev_add(options, error);
}

static bool apply_chardev(const char *text, const ProcessOptions *process, GError **error)
{
    if (g_str_equal(text, "help") || g_str_equal(text, "?")) {
        help_print_chardevs();
        exit(EXIT_SUCCESS);
    }
    if (!chardev_add(text, error)) {
        return false;
    }
    if (process->daemonize && chardev_uses_stdio()) {
        merino_error(error, "cannot use stdio with -daemonize");
        return false;
    }
    return true;
}

static bool apply_export(const char *text, const ProcessOptions *process, GError **error)
{
    g_autoptr(BlockExportOptions) options =
        option_decode(&qapi_type_BlockExportOptions, text, "type", error);

    return options && qmp_block_export_add(options, error);
}

static bool apply_monitor(const char *text, const ProcessOptions *process, GError **error)
{
    g_autoptr(MonitorOptions) options =
        option_decode(&qapi_type_MonitorOptions, text, "chardev", error);

    return options && monitor_add(options, error);
}

static bool apply_nbd_server(const char *text, const ProcessOptions *process, GError **error)
{
    g_autoptr(NbdServerOptions) options =
        option_decode(&qapi_type_NbdServerOptions, text, NULL, error);

    return options && monitor_nbd_server_start(options, error);
}

/* `--object help` and `--object <type>,help` print and exit. */
static bool apply_object(const char *text, const ProcessOptions *process, GError **error)
{
    g_autoptr(ObjectOptions) options = NULL;
    QapiDecodeMode mode;
    bool help = false;
    json_auto_t *value = option_parse(text, "qom-type", &mode, &help, error);

    if (value && help) {
        if (help_print_objects(json_string_value(json_object_get(value, "qom-type")), error)) {
            exit(EXIT_SUCCESS);
        }
        return false;
    }
    options = value ? qapi_decode(&qapi_type_ObjectOptions, value, mode, error) : NULL;
    return options && qmp_object_add(options, error);
}

typedef bool ApplyFn(const char *text, const ProcessOptions *process, GError **error);

/* NULL for what the first pass takes. */
static ApplyFn *apply_function(int option)
{
    static ApplyFn *const functions[] = {
        [OPTION_BLOCKDEV - OPTION_BLOCKDEV] = apply_blockdev,
        [OPTION_CHARDEV - OPTION_BLOCKDEV] = apply_chardev,
        [OPTION_EXPORT - OPTION_BLOCKDEV] = apply_export,
        [OPTION_MONITOR - OPTION_BLOCKDEV] = apply_monitor,
        [OPTION_NBD_SERVER - OPTION_BLOCKDEV] = apply_nbd_server,
        [OPTION_OBJECT - OPTION_BLOCKDEV] = apply_object,
        [OPTION_PIDFILE - OPTION_BLOCKDEV] = NULL,
    };

    return functions[option - OPTION_BLOCKDEV];
}

/* --- the two passes --- */

ProcessOptions options_check(int argc, char **argv)
{
    ProcessOptions process = { 0 };
    int option;

    while ((option = getopt_long(argc, argv, "-hV", long_options, NULL)) != -1) {
        switch (option) {
        case 'h':
            help_print_usage(g_get_prgname());
            exit(EXIT_SUCCESS);
        case 'V':
            help_print_version(g_get_prgname());
            exit(EXIT_SUCCESS);
        case OPTION_DAEMONIZE:
            process.daemonize = true;
            break;
        case OPTION_PIDFILE:
            process.pidfile = optarg;
            break;
        case 1:
            g_printerr("%s: %s: Unexpected argument\n", g_get_prgname(), optarg);
            exit(EXIT_FAILURE);
        case '?':
            exit(EXIT_FAILURE);
        default:
            break;
        }
    }
    return process;
}

/* The option as the user wrote it: one word of the command line, or two. */
static char *option_as_written(char **argv, int from)
{
    return optind - from == 2 ? g_strdup_printf("%s %s", argv[from], argv[from + 1])
                              : g_strdup(argv[from]);
}

bool options_apply(int argc, char **argv, const ProcessOptions *process)
{
    int option;
    int from = 1;

    /* GNU's way to begin again. */
    optind = 0;
    while ((option = getopt_long(argc, argv, "-hV", long_options, NULL)) != -1) {
        ApplyFn *apply = apply_function(option);
        g_autoptr(GError) error = NULL;

        if (apply && !apply(optarg, process, &error)) {
            g_autofree char *written = option_as_written(argv, from);

            g_printerr("%s: %s: %s\n", g_get_prgname(), written, error->message);
            return false;
        }
        from = optind;
    }
    return true;
}
