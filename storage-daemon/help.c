/* SPDX-License-Identifier: MIT */
#include "help.h"

#include "monitor/chardev.h"
#include "qapi/qapi-types.h"
#include "util/error.h"

#include <stdio.h>

static const char usage[] =
    "Usage: %s [options]\n"
    "Serve virtual machine disks over NBD and track what changes in them\n"
    "\n"
    "  -h, --help             display this help and exit\n"
    "  -V, --version          output version information and exit\n"
    "\n"
    "  --blockdev [driver=]<driver>[,node-name=<N>][,discard=ignore|unmap]\n"
    "             [,cache.direct=on|off][,cache.no-flush=on|off]\n"
    "             [,read-only=on|off][,auto-read-only=on|off]\n"
    "             [,force-share=on|off][,detect-zeroes=on|off|unmap]\n"
    "             [,driver specific parameters...]\n"
    "                         add a node to the block graph\n"
    "\n"
    "  --chardev [backend=]socket,id=<id>,path=<path>[,server=on|off][,wait=on|off]\n"
    "  --chardev [backend=]socket,id=<id>,host=<host>,port=<port>[,server=on|off]\n"
    "            [,wait=on|off][,ipv4=on|off][,ipv6=on|off][,nodelay=on|off]\n"
    "  --chardev [backend=]socket,id=<id>,fd=<number>[,server=on|off][,wait=on|off]\n"
    "  --chardev [backend=]stdio,id=<id>\n"
    "                         add a character device, for a monitor\n"
    "  --chardev help         list the kinds of character devices\n"
    "\n"
    "  --daemonize            go to the background; the command returns once\n"
    "                         everything is served\n"
    "\n"
    "  --export [type=]nbd,id=<id>,node-name=<node-name>[,name=<export-name>]\n"
    "           [,writable=on|off][,bitmaps.<n>=<name>][,iothread=<id>]\n"
    "                         offer a node to NBD clients (after --nbd-server)\n"
    "\n"
    "  --monitor [chardev=]<id>[,mode=control][,pretty[=on|off]]\n"
    "                         offer QMP on a character device\n"
    "\n"
    "  --nbd-server addr.type=inet,addr.host=<host>,addr.port=<port>\n"
    "               [,tls-creds=<id>][,tls-authz=<id>]\n"
    "               [,handshake-max-seconds=<n>][,max-connections=<n>]\n"
    "               [,max-requests=<n>][,max-request-memory=<size>]\n"
    "  --nbd-server addr.type=unix,addr.path=<path>[,socket-mode=<octal>][,...]\n"
    "  --nbd-server addr.type=fd,addr.str=<number>[,...]\n"
    "                         start the NBD server\n"
    "\n"
    "  --object help          list the types of objects\n"
    "  --object <type>,help   list the properties of a type\n"
    "  --object [qom-type=]<type>,id=<id>[,<property>=<value>...]\n"
    "                         make an object\n"
    "\n"
    "  --pidfile <path>       write the process's number to a file once everything\n"
    "                         is served\n"
    "\n"
    "Options that describe something may be given in JSON too, --chardev excepted:\n"
    "  --blockdev '{\"driver\": \"file\", \"node-name\": \"disk\", \"filename\": \"disk.raw\"}'\n";

void help_print_usage(const char *program)
{
    printf(usage, program);
}

void help_print_version(const char *program)
{
    printf("%s version " MERINO_VERSION "\n", program);
}

void help_print_chardevs(void)
{
    printf("Available chardev backend types:\n");
    for (const char *const *kind = chardev_kinds(); *kind; kind++) {
        printf("  %s\n", *kind);
    }
}

static void print_properties(const char *type, const QapiType *branch)
{
    size_t n = branch ? branch->as.object.n_members : 0;

    if (n == 0) {
        printf("There are no options for %s.\n", type);
        return;
    }
    printf("%s options:\n", type);
    for (size_t i = 0; i < n; i++) {
        const QapiMember *member = &branch->as.object.members[i];

        printf("  %s=<%s>\n", member->name, member->type->name);
    }
}

bool help_print_objects(const char *type, GError **error)
{
    const QapiType *types = &qapi_type_ObjectType;
    int found;

    if (!type) {
        printf("List of user creatable objects:\n");
        for (size_t i = 0; i < types->as.enumeration.count; i++) {
            printf("  %s\n", types->as.enumeration.names[i]);
        }
        return true;
    }
    found = qapi_enum_parse(types, type);
    if (found < 0) {
        merino_error(error, "Parameter 'qom-type' does not accept value '%s'", type);
        return false;
    }
    print_properties(type, qapi_type_ObjectOptions.as.object.branches[found]);
    return true;
}
