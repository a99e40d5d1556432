/* SPDX-License-Identifier: MIT */
/*
 * QMP commands about the session and the program themselves.
 */
#include "program.h"
#include "qapi/dispatch.h"
#include "qapi/introspect.h"
#include "qapi/qapi-commands.h"
#include "util/error.h"
#include "version.h"

/* The session sees to it that this runs once, and first. The greeting offers no capabilities. */
bool qmp_qmp_capabilities(const QMPCapabilityList *enable, GError **error)
{
    if (enable && enable->len > 0) {
        merino_error(error, "Capability '%s' is not offered", QMPCapability_str(enable->items[0]));
        return false;
    }
    return true;
}

VersionInfo *qmp_query_version(GError **error)
{
    VersionInfo *info = g_new0(VersionInfo, 1);

    info->qemu = g_new0(VersionTriple, 1);
    info->qemu->major = QEMU_VERSION_MAJOR;
    info->qemu->minor = QEMU_VERSION_MINOR;
    info->qemu->micro = QEMU_VERSION_MICRO;
    info->package = g_strdup(MERINO_PACKAGE);
    return info;
}

CommandInfoList *qmp_query_commands(GError **error)
{
    CommandInfoList *list = g_new0(CommandInfoList, 1);

    for (const QapiCommand *command = qapi_commands; command->name; command++) {
        CommandInfo *info = g_new0(CommandInfo, 1);

        info->name = g_strdup(command->name);
        command_info_list_append(list, info);
    }
    return list;
}

json_t *qmp_query_qmp_schema(GError **error)
{
    return qapi_introspect();
}

bool qmp_quit(GError **error)
{
    monitor_quit();
    return true;
}
