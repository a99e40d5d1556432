/* SPDX-License-Identifier: MIT */
#include "version.h"

json_t *qmp_greeting(void)
{
    return json_pack("{s:{s:{s:{s:i, s:i, s:i}, s:s}, s:[]}}", "QMP", "version", "qemu", "major",
                     QEMU_VERSION_MAJOR, "minor", QEMU_VERSION_MINOR, "micro", QEMU_VERSION_MICRO,
                     "package", MERINO_PACKAGE, "capabilities");
}
