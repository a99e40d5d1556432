/* SPDX-License-Identifier: MIT */
#include "fuzz.h"

#include <stdio.h>
#include <stdlib.h>

void fuzz_fail(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    abort();
}

/* GLib's complaints about how it is used are faults as well. It would end the program by SIGTRAP,
 * which libFuzzer does not catch, so that the input would be lost. */
static void on_log(const char *domain, GLogLevelFlags level, const char *message, void *opaque)
{
    if (level & (G_LOG_LEVEL_ERROR | G_LOG_LEVEL_CRITICAL)) {
        fuzz_fail("%s", message);
    }
}

static void __attribute__((constructor)) set_log_handler(void)
{
    g_log_set_default_handler(on_log, NULL);
}
