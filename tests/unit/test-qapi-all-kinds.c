/* SPDX-License-Identifier: MIT */
/*
 * What the generator makes of a schema that has one of everything (tests/qapi/all-kinds.json):
 * values come through decoding, cloning and encoding unchanged; limits hold; commands reach their
 * handlers and events the emitter.
 */
#include "qapi/dispatch.h"
#include "qapi/event.h"
#include "qapi/introspect.h"
#include "qapi/json.h"
#include "tests/qapi/qapi-codec.h"
#include "tests/qapi/qapi-commands.h"
#include "tests/qapi/qapi-events.h"
#include "util/error.h"

#include <string.h>

static json_t *parse(const char *text)
{
    g_autoptr(GError) error = NULL;
    json_t *value = qapi_json_parse(text, strlen(text), &error);

    g_assert_no_error(error);
    return value;
}

/* Decode, clone, free the first, encode the second. */
static char *pass_through(const QapiType *type, const char *text, QapiDecodeMode mode,
                          GError **error)
{
    json_auto_t *in = parse(text);
    json_auto_t *out = NULL;
    void *value = qapi_decode(type, in, mode, error);
    void *copy;

    if (!value) {
        return NULL;
    }
    copy = qapi_value_clone(type, value);
    qapi_value_free(type, value);
    out = qapi_encode(type, copy);
    qapi_value_free(type, copy);
    return qapi_json_text(out, false);
}

/* `expected` is JSON, its members in any order. */
static void check_as(const QapiType *type, const char *text, QapiDecodeMode mode,
                     const char *expected)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *printed = pass_through(type, text, mode, &error);
    json_auto_t *wanted = parse(expected);
    g_autofree char *wanted_text = qapi_json_text(wanted, false);

    g_assert_no_error(error);
    g_assert_cmpstr(printed, ==, wanted_text);
}

static void check(const QapiType *type, const char *text)
{
    check_as(type, text, QAPI_DECODE_JSON, text);
}

static void check_refused_as(const QapiType *type, const char *text, QapiDecodeMode mode,
                             const char *expected)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(pass_through(type, text, mode, &error));
    g_assert_nonnull(error);
    g_assert_cmpstr(error->message, ==, expected);
}

static void check_refused(const QapiType *type, const char *text, const char *expected)
{
    check_refused_as(type, text, QAPI_DECODE_JSON, expected);
}

/* --- values --- */

static void test_widths(void)
{
    check(&qapi_type_Widths, "{'i8':-128,'i16':-32768,'i32':-2147483648,"
                             "'i64':-9223372036854775808,'u8':0,'u16':0,'u32':0,'u64':0,'size':0}");
    check(&qapi_type_Widths, "{'i8':127,'i16':32767,'i32':2147483647,'i64':9223372036854775807,"
                             "'u8':255,'u16':65535,'u32':4294967295,'u64':9223372036854775807,"
                             "'size':9223372036854775807,'number':0.25}");
}

static void test_out_of_range(void)
{
    static const struct {
        const char *member;
        const char *value;
        const char *expected;
    } cases[] = {
        { "i8", "128", "Parameter 'i8' expects int8_t" },
        { "i8", "-129", "Parameter 'i8' expects int8_t" },
        { "i16", "32768", "Parameter 'i16' expects int16_t" },
        { "i32", "2147483648", "Parameter 'i32' expects int32_t" },
        { "i64", "9223372036854775808", "Invalid parameter type for 'i64', expected: integer" },
        { "u8", "256", "Parameter 'u8' expects uint8_t" },
        { "u8", "-1", "Parameter 'u8' expects uint8_t" },
        { "u16", "65536", "Parameter 'u16' expects uint16_t" },
        { "u32", "4294967296", "Parameter 'u32' expects uint32_t" },
        { "u64", "18446744073709551616", "Parameter 'u64' expects uint64" },
        { "size", "'1k'", "Parameter 'size' expects uint64" },
        { "number", "'1'", "Invalid parameter type for 'number', expected: number" },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        json_auto_t *in = parse("{'i8':0,'i16':0,'i32':0,'i64':0,'u8':0,'u16':0,'u32':0,'u64':0,"
                                "'size':0}");
        g_autofree char *text = NULL;

        json_object_set_new(in, cases[i].member, parse(cases[i].value));
        text = qapi_json_text(in, false);
        check_refused(&qapi_type_Widths, text, cases[i].expected);
    }
}

/* A negative number is the two's complement where 64 bits are unsigned. */
static void test_unsigned_wraps(void)
{
    json_auto_t *in = parse("{'i8':0,'i16':0,'i32':0,'i64':0,'u8':0,'u16':0,'u32':0,'u64':-1,"
                            "'size':-2}");
    g_autoptr(GError) error = NULL;
    g_autoptr(Widths) widths = widths_decode(in, &error);

    g_assert_no_error(error);
    g_assert_cmpuint(widths->u64, ==, UINT64_MAX);
    g_assert_cmpuint(widths->size, ==, UINT64_MAX - 1);
}

static void test_text_values(void)
{
    check_as(&qapi_type_Widths,
             "{'i8':'-0x80','i16':'0','i32':'+1','i64':'010','u8':'0xff','u16':'1','u32':'2',"
             "'u64':'3','size':'1.5k','number':'2.5'}",
             QAPI_DECODE_KEYVAL,
             "{\"i16\": 0, \"u8\": 255, \"i64\": 8, \"size\": 1536, \"u16\": 1, \"i8\": -128, "
             "\"u64\": 3, \"u32\": 2, \"i32\": 1, \"number\": 2.5}");
    check_refused_as(&qapi_type_Point, "{'x':'1 '}", QAPI_DECODE_KEYVAL,
                     "Parameter 'x' expects integer");
    check_refused_as(&qapi_type_Point, "{'x':{'y':'1'}}", QAPI_DECODE_KEYVAL,
                     "Parameters 'x.*' are unexpected");
    check_refused_as(&qapi_type_Lists, "{'bytes':['1','x']}", QAPI_DECODE_KEYVAL,
                     "Parameter 'bytes.1' expects integer");
    check_refused_as(&qapi_type_Lists, "{'bytes':['256']}", QAPI_DECODE_KEYVAL,
                     "Parameter 'null' expects uint8_t");
}

static void test_lists(void)
{
    check(&qapi_type_Lists, "{}");
    check(&qapi_type_Lists, "{'strings':[],'points':[],'anys':[]}");
    check(&qapi_type_Lists,
          "{'strings':['a','','c'],'bools':[true,false],'ints':[1,-2,3],'bytes':[0,255],"
          "'colors':['dark-green','red'],'points':[{'x':1},{'x':2,'y':3}],"
          "'choices':['a',true,3,null,{'x':1},['b','c']],'anys':[1,null,{'a':[{}]}]}");
    check_refused(&qapi_type_Lists, "{'points':[{'x':1},{}]}",
                  "Parameter 'points[1].x' is missing");
    check_refused(&qapi_type_Lists, "{'colors':['red','blue']}",
                  "Parameter 'null' does not accept value 'blue'");
}

static void test_list_append(void)
{
    g_autoptr(StrList) strings = g_new0(StrList, 1);
    g_autoptr(ColorList) colors = g_new0(ColorList, 1);
    json_auto_t *out = NULL;
    g_autofree char *text = NULL;

    for (int i = 0; i < 5; i++) {
        str_list_append(strings, g_strdup_printf("s%d", i));
        color_list_append(colors, i % 2 ? COLOR_RED : COLOR_DARK_GREEN);
    }
    g_assert_cmpuint(colors->len, ==, 5);
    g_assert_cmpint(colors->items[4], ==, COLOR_DARK_GREEN);
    out = str_list_encode(strings);
    text = qapi_json_text(out, false);
    g_assert_cmpstr(text, ==, "[\"s0\", \"s1\", \"s2\", \"s3\", \"s4\"]");
}

static void test_unions(void)
{
    check(&qapi_type_Shape, "{'color':'dark-green','label':'l'}");
    check(&qapi_type_Shape, "{'color':'red','x':1,'name':'n','default':true}");
    check_refused(&qapi_type_Shape, "{'color':'dark-green','x':1}", "Parameter 'x' is unexpected");
    check_refused(&qapi_type_Shape, "{'color':'red'}", "Parameter 'x' is missing");
    check_refused(&qapi_type_Shape, "{'x':1}", "Parameter 'color' is missing");
}

static void test_alternates(void)
{
    g_autoptr(GError) error = NULL;
    json_auto_t *in = parse("{'x':5}");
    g_autoptr(Choice) choice = choice_decode(in, &error);

    g_assert_no_error(error);
    g_assert_cmpint(choice->type, ==, CHOICE_TYPE_POINT);
    g_assert_cmpint(choice->u.point->x, ==, 5);
    check_refused(&qapi_type_Choice, "{'x':'5'}",
                  "Invalid parameter type for 'x', expected: integer");
    check_refused(&qapi_type_Choice, "1.5", "Invalid parameter type for '', expected: integer");
    check_as(&qapi_type_Choice, "'true'", QAPI_DECODE_KEYVAL, "\"true\"");
}

static void test_recursion(void)
{
    check(&qapi_type_Tree,
          "{'below':{'below':{'shape':{'color':'red','x':1}}},'extra':{'z':[1,2]}}");
    check_refused(&qapi_type_Tree, "{'below':{'below':{'shape':{'color':'red'}}}}",
                  "Parameter 'below.below.shape.x' is missing");
}

/* As deep as a parser lets anything through. */
static void test_deep(void)
{
    json_auto_t *in = json_object();
    g_autoptr(GError) error = NULL;
    g_autoptr(Tree) tree = NULL;
    g_autoptr(Tree) copy = NULL;
    json_auto_t *out = NULL;

    for (int i = 0; i < 2000; i++) {
        json_t *above = json_object();

        json_object_set(above, "below", in);
        json_decref(in);
        in = above;
    }
    tree = tree_decode(in, &error);
    g_assert_no_error(error);
    copy = tree_clone(tree);
    out = tree_encode(copy);
    g_assert_true(json_equal(in, out));
}

static void test_empty_struct(void)
{
    check(&qapi_type_Nothing, "{}");
    check_refused(&qapi_type_Nothing, "{'a':1}", "Parameter 'a' is unexpected");
    check_refused(&qapi_type_Nothing, "[]", "Invalid parameter type for '', expected: object");
}

static void test_enums(void)
{
    Color color = COLOR_RED;

    g_assert_cmpstr(Color_str(COLOR_DARK_GREEN), ==, "dark-green");
    g_assert_true(Color_parse("dark-green", &color));
    g_assert_cmpint(color, ==, COLOR_DARK_GREEN);
    g_assert_false(Color_parse("DARK-GREEN", &color));
    g_assert_false(Color_parse("", &color));
}

/* Names of files may be anything; JSON may not. */
static void test_bad_utf8_is_mended(void)
{
    NamedPoint point = { .x = 1, .name = (char *)"a\xff" };
    json_auto_t *out = named_point_encode(&point);
    g_autofree char *text = qapi_json_text(out, false);

    g_assert_cmpstr(text, ==, "{\"name\": \"a\\uFFFD\", \"x\": 1}");
}

/* Trees of random JSON: a value or an error, and nothing is lost on the way to either. */
static json_t *random_json(GRand *random, int depth)
{
    static const char *const names[] = { "below", "shape",  "extra", "color", "x",    "y",
                                         "label", "points", "name",  "anys",  "ints", "choices" };
    static const char *const texts[] = { "red", "dark-green", "", "1", "on" };
    json_t *out;

    switch (g_rand_int_range(random, 0, depth > 0 ? 8 : 5)) {
    case 0:
        return json_string(texts[g_rand_int_range(random, 0, G_N_ELEMENTS(texts))]);
    case 1:
        return json_integer(g_rand_int_range(random, -300, 300));
    case 2:
        return json_boolean(g_rand_boolean(random));
    case 3:
        return json_null();
    case 4:
        return json_real(0.5);
    case 5:
        out = json_array();
        for (int i = g_rand_int_range(random, 0, 3); i > 0; i--) {
            json_array_append_new(out, random_json(random, depth - 1));
        }
        return out;
    default:
        out = json_object();
        for (int i = g_rand_int_range(random, 0, 4); i > 0; i--) {
            json_object_set_new(out, names[g_rand_int_range(random, 0, G_N_ELEMENTS(names))],
                                random_json(random, depth - 1));
        }
        return out;
    }
}

static void test_random(void)
{
    static const QapiType *const types[] = { &qapi_type_Tree, &qapi_type_Lists, &qapi_type_Shape,
                                             &qapi_type_Choice };
    const char *given = g_getenv("MERINO_TEST_SEED");
    guint32 seed = given ? (guint32)g_ascii_strtoull(given, NULL, 0) : g_random_int();
    g_autoptr(GRand) random = g_rand_new_with_seed(seed);

    g_test_message("MERINO_TEST_SEED=%u", seed);
    for (int round = 0; round < 20000; round++) {
        const QapiType *type = types[round % G_N_ELEMENTS(types)];
        json_auto_t *in = random_json(random, 5);
        g_autoptr(GError) error = NULL;
        void *value = qapi_decode(type, in, QAPI_DECODE_JSON, &error);
        json_auto_t *out = NULL;

        g_assert_true((value == NULL) == (error != NULL));
        if (value) {
            out = qapi_encode(type, value);
            g_assert_true(json_equal(in, out));
            qapi_value_free(type, value);
        }
    }
}

/* --- commands --- */

Point *qmp_get_point(const Point *start, bool has_far, bool far, bool has_color, Color color,
                     GError **error)
{
    Point *point;

    if (!start) {
        merino_error(error, "no start");
        return NULL;
    }
    point = point_clone(start);
    point->has_y = true;
    point->y = (has_far ? 100 : 0) + (far ? 10 : 0) + (has_color ? (int)color : 0);
    return point;
}

char *qmp_get_text(GError **error)
{
    return g_strdup("text");
}

bool qmp_get_count(const StrList *strings, int64_t *ret, GError **error)
{
    *ret = (int64_t)strings->len;
    return true;
}

json_t *qmp_get_json(GError **error)
{
    return parse("{'a':1}");
}

bool qmp_put_shape(const Shape *arg, GError **error)
{
    return arg->color == COLOR_RED && arg->u.red.x == 1;
}

bool qmp_put_point(int64_t x, bool has_y, int64_t y, GError **error)
{
    if (has_y) {
        merino_error_class(error, MERINO_ERROR_DEVICE_NOT_FOUND, "y is %d", (int)y);
    }
    return !has_y;
}

/* `expected` is the printed result or the error's words. */
static void check_command(const char *name, const char *arguments, const char *expected)
{
    json_auto_t *in = arguments ? parse(arguments) : NULL;
    json_auto_t *ret = NULL;
    g_autoptr(GError) error = NULL;
    g_autofree char *text = NULL;

    if (qapi_command_run(qapi_commands, name, in, &ret, &error)) {
        g_assert_no_error(error);
        text = qapi_json_text(ret, false);
        g_assert_cmpstr(text, ==, expected);
    } else {
        g_assert_null(ret);
        g_assert_cmpstr(error->message, ==, expected);
    }
}

static void test_commands(void)
{
    check_command("get-point", "{'start':{'x':1},'far':true,'color':'dark-green'}",
                  "{\"x\": 1, \"y\": 111}");
    check_command("get-point", "{'start':{'x':1},'far':false}", "{\"x\": 1, \"y\": 100}");
    check_command("get-point", NULL, "no start");
    check_command("get-point", "{'start':{}}", "Parameter 'start.x' is missing");
    check_command("get-text", NULL, "\"text\"");
    check_command("get-text", "{}", "\"text\"");
    check_command("get-text", "{'a':1}", "Parameter 'a' is unexpected");
    check_command("get-count", "{'strings':['a','b']}", "2");
    check_command("get-count", "{'strings':[]}", "0");
    check_command("get-count", NULL, "Parameter 'strings' is missing");
    check_command("get-json", NULL, "{\"a\": 1}");
    check_command("put-shape", "{'color':'red','x':1}", "{}");
    check_command("put-point", "{'x':1}", "{}");
    check_command("put-point", "{'x':1,'y':2}", "y is 2");
    check_command("put", NULL, "The command put has not been found");
    check_command("", NULL, "The command  has not been found");
}

static void test_error_classes(void)
{
    g_autoptr(GError) error = NULL;
    json_auto_t *in = parse("{'x':1,'y':2}");
    json_t *ret = NULL;

    g_assert_false(qapi_command_run(qapi_commands, "put", NULL, &ret, &error));
    g_assert_cmpstr(merino_error_class_name(error), ==, "CommandNotFound");
    g_clear_error(&error);
    g_assert_false(qapi_command_run(qapi_commands, "put-point", in, &ret, &error));
    g_assert_cmpstr(merino_error_class_name(error), ==, "DeviceNotFound");
}

/* --- events --- */

static char *last_event; /* its name and data */

static void remember_event(const char *name, json_t *message)
{
    const json_t *data = json_object_get(message, "data");
    const json_t *stamp = json_object_get(message, "timestamp");
    g_autofree char *text = data ? qapi_json_text(data, false) : g_strdup("none");

    g_assert_cmpstr(json_string_value(json_object_get(message, "event")), ==, name);
    g_assert_cmpint(json_integer_value(json_object_get(stamp, "seconds")), >, 1600000000);
    g_assert_cmpint(json_integer_value(json_object_get(stamp, "microseconds")), <, 1000000);
    g_free(last_event);
    last_event = g_strdup_printf("%s %s", name, text);
}

static void test_events(void)
{
    Point by = { .x = 1 };
    Shape shape = { .color = COLOR_RED, .u.red = { .x = 2 } };

    qapi_event_send_stopped();
    g_assert_null(last_event);
    qapi_event_emit_fn = remember_event;
    qapi_event_send_stopped();
    g_assert_cmpstr(last_event, ==, "STOPPED none");
    qapi_event_send_moved("n", &by, true, false);
    g_assert_cmpstr(last_event, ==, "MOVED {\"name\": \"n\", \"far\": false, \"by\": {\"x\": 1}}");
    qapi_event_send_moved("n", NULL, false, false);
    g_assert_cmpstr(last_event, ==, "MOVED {\"name\": \"n\"}");
    qapi_event_send_painted(&shape);
    g_assert_cmpstr(last_event, ==, "PAINTED {\"x\": 2, \"color\": \"red\"}");
    g_clear_pointer(&last_event, g_free);
    qapi_event_emit_fn = NULL;
}

static void test_introspection(void)
{
    json_auto_t *once = qapi_introspect();
    json_auto_t *again = qapi_introspect();

    g_assert_true(once == again);
    g_assert_cmpstr(json_string_value(json_object_get(json_array_get(once, 0), "name")), ==,
                    "get-point");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/qapi/values/widths", test_widths);
    g_test_add_func("/qapi/values/out-of-range", test_out_of_range);
    g_test_add_func("/qapi/values/unsigned-wraps", test_unsigned_wraps);
    g_test_add_func("/qapi/values/text", test_text_values);
    g_test_add_func("/qapi/values/lists", test_lists);
    g_test_add_func("/qapi/values/list-append", test_list_append);
    g_test_add_func("/qapi/values/unions", test_unions);
    g_test_add_func("/qapi/values/alternates", test_alternates);
    g_test_add_func("/qapi/values/recursion", test_recursion);
    g_test_add_func("/qapi/values/deep", test_deep);
    g_test_add_func("/qapi/values/empty-struct", test_empty_struct);
    g_test_add_func("/qapi/values/enums", test_enums);
    g_test_add_func("/qapi/values/bad-utf8-is-mended", test_bad_utf8_is_mended);
    g_test_add_func("/qapi/values/random", test_random);
    g_test_add_func("/qapi/commands", test_commands);
    g_test_add_func("/qapi/commands/error-classes", test_error_classes);
    g_test_add_func("/qapi/events", test_events);
    g_test_add_func("/qapi/introspection", test_introspection);
    return g_test_run();
}
