/* SPDX-License-Identifier: MIT */
/*
 * merino-img: makes, shows, compares and changes images, with the command lines of qemu-img.
 */
#include "block/driver.h"
#include "img.h"
#include "qapi/json.h"
#include "qapi/keyval.h"
#include "tool.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *usage;
} commands[] = {
    { "amend", img_amend,
      "[--object objectdef] [--image-opts] [-p] [-q] [-f fmt] [-t cache] [--force] -o options "
      "filename" },
    { "bitmap", img_bitmap,
      "(--merge SOURCE | --add | --remove | --clear | --enable | --disable)... "
      "[-b source_file [-F source_fmt]] [-g granularity] [--object objectdef] "
      "[--image-opts | -f fmt] filename bitmap" },
    { "check", img_check,
      "[--object objectdef] [--image-opts] [-q] [-f fmt] [--output=ofmt] [-r [leaks | all]] "
      "[-T src_cache] [-U] filename" },
    { "compare", img_compare,
      "[--object objectdef] [--image-opts] [-f fmt] [-F fmt] [-T src_cache] [-p] [-q] [-s] [-U] "
      "filename1 filename2" },
    { "create", img_create,
      "[--object objectdef] [-q] [-f fmt] [-b backing_file [-F backing_fmt]] [-u] [-o options] "
      "filename [size]" },
    { "info", img_info,
      "[--object objectdef] [--image-opts] [-f fmt] [--output=ofmt] [--backing-chain] [-U] "
      "filename" },
    { "map", img_map,
      "[--object objectdef] [--image-opts] [-f fmt] [--start-offset=offset] [--max-length=len] "
      "[--output=ofmt] [-U] filename" },
    { "rebase", img_rebase,
      "[--object objectdef] [--image-opts] [-U] [-q] [-f fmt] [-t cache] [-T src_cache] [-p] [-u] "
      "-b backing_file [-F backing_fmt] filename" },
    { "resize", img_resize,
      "[--object objectdef] [--image-opts] [-f fmt] [--preallocation=prealloc] [-q] [--shrink] "
      "filename [+ | -]size" },
    { "snapshot", img_snapshot,
      "[--object objectdef] [--image-opts] [-U] [-q] [-l | -a snapshot | -c snapshot | "
      "-d snapshot] filename" },
};

static const char notes[] =
    "\n"
    "  filename    a path, or json:{...}; with --image-opts the options of a node\n"
    "  fmt         format of the image; where it is not given the image decides\n"
    "  cache       none, writeback, writethrough, directsync or unsafe\n"
    "  size        bytes, or with the suffix k, M, G, T, P or E multiples of 1024\n"
    "  options     name=value,...; -o help lists them\n"
    "  objectdef   an object, as merino-storage-daemon's --object takes it\n"
    "  ofmt        human or json\n"
    "  -p          show progress      -q  print nothing but errors\n"
    "  -U          use the image though others write to it\n"
    "\n"
    "Supported formats:";

static void print_version(void)
{
    printf("%s version " MERINO_VERSION "\n", g_get_prgname());
}

void img_print_help(void)
{
    print_version();
    printf("usage: %s command [command options]\n"
           "Make, show, compare and change disk images\n"
           "\n"
           "  -h, --help       display this help and exit\n"
           "  -V, --version    output version information and exit\n"
           "\n"
           "Commands:\n",
           g_get_prgname());
    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++) {
        printf("  %s %s\n", commands[i].name, commands[i].usage);
    }
    fputs(notes, stdout);
    for (int i = 0; i < BLOCKDEV_DRIVER__MAX; i++) {
        if (driver_find(BlockdevDriver_str(i))) {
            printf(" %s", BlockdevDriver_str(i));
        }
    }
    printf("\n");
}

/* --- what commands share --- */

void img_usage_error(const char *format, ...)
{
    va_list args;

    fprintf(stderr, "%s: ", g_get_prgname());
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\nTry '%s --help' for more information\n", g_get_prgname());
    exit(EXIT_FAILURE);
}

int img_getopt(int argc, char **argv, const char *letters, const struct option *options)
{
    int option;

    while ((option = getopt_long(argc, argv, letters, options, NULL)) == OPTION_OBJECT) {
        if (!tool_add_object(optarg)) {
            exit(EXIT_FAILURE);
        }
    }
    switch (option) {
    case ':':
        img_usage_error("missing argument for option '%s'", argv[optind - 1]);
    case '?':
        img_usage_error("unrecognized option '%s'", argv[optind - 1]);
    case 'h':
        img_print_help();
        exit(EXIT_SUCCESS);
    default:
        return option;
    }
}

bool img_take_source_option(int option, ImageSource *source)
{
    switch (option) {
    case 'f':
        source->format = optarg;
        return true;
    case 'q':
        source->quiet = true;
        return true;
    case 'U':
        source->force_share = true;
        return true;
    case OPTION_IMAGE_OPTS:
        source->image_opts = true;
        return true;
    default:
        return false;
    }
}

bool img_output_is_json(const char *arg)
{
    if (strcmp(arg, "json") == 0) {
        return true;
    }
    if (strcmp(arg, "human") != 0) {
        tool_error("--output must be used with human or json as argument.");
        exit(EXIT_FAILURE);
    }
    return false;
}

const char *img_only_filename(int argc, char **argv)
{
    if (optind != argc - 1) {
        img_usage_error("Expecting one image file name");
    }
    return argv[optind];
}

void img_print_json(json_t *value)
{
    g_autofree char *text = qapi_json_text(value, true);

    puts(text);
    json_decref(value);
}

/* Commas in pairs are part of a value. */
static bool has_comma_at_end(const char *text)
{
    size_t n = strlen(text), commas = 0;

    while (commas < n && text[n - commas - 1] == ',') {
        commas++;
    }
    return commas % 2 == 1;
}

char *img_join_options(char *options, const char *more)
{
    g_autofree char *old = options;

    if (!more[0] || more[0] == ',' || has_comma_at_end(more)) {
        tool_error("Invalid option list: %s", more);
        return NULL;
    }
    return old ? g_strjoin(",", old, more, NULL) : g_strdup(more);
}

/* --- the program --- */

static void parse_global_options(int argc, char **argv)
{
    static const struct option options[] = {
        { "help", no_argument, NULL, 'h' },
        { "version", no_argument, NULL, 'V' },
        { NULL, 0, NULL, 0 },
    };
    int option;

    while ((option = img_getopt(argc, argv, "+:hV", options)) != -1) {
        if (option == 'V') {
            print_version();
            exit(EXIT_SUCCESS);
        }
    }
    if (optind >= argc) {
        img_usage_error("Not enough arguments");
    }
}

int main(int argc, char **argv)
{
    const char *name;

    tool_init(argv);
    parse_global_options(argc, argv);
    name = argv[optind];
    argc -= optind;
    argv += optind;
    optind = 0;
    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++) {
        if (strcmp(commands[i].name, name) == 0) {
            return tool_done(commands[i].run(argc, argv));
        }
    }
    img_usage_error("Command not found: %s", name);
}
