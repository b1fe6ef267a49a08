// Buffers, reading, mapping, atomic writing, .npy.
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>

#include "core_util.h"

static void test_buffer(void) {
    lv_buffer buffer = {.max_bytes = 5};
    CHECK_OK(lv_buffer_append(&buffer, "abc", 3));
    CHECK(strcmp((char *)buffer.data, "abc") == 0);
    CHECK_OK(lv_buffer_append(&buffer, NULL, 0));
    CHECK_OK(lv_buffer_append(&buffer, "de", 2));
    CHECK_STATUS(lv_buffer_append(&buffer, "f", 1), LV_ELIMIT);
    CHECK(buffer.n_bytes == 5 && strcmp((char *)buffer.data, "abcde") == 0);
    CHECK_STATUS(lv_buffer_append(&buffer, "f", SIZE_MAX - 2), LV_ELIMIT);
    lv_buffer_free(&buffer);
    CHECK(!buffer.data && !buffer.n_bytes);
    CHECK_OK(lv_buffer_append(&buffer, "again", 5));
    lv_buffer_free(&buffer);
    buffer.max_bytes = SIZE_MAX;
    CHECK_STATUS(lv_buffer_append(&buffer, "f", SIZE_MAX), LV_ELIMIT);
}

static void test_read(void) {
    lv_buffer out;
    write_text("five", "12345");
    CHECK_OK(lv_file_read(scratch("five"), 5, &out));
    CHECK(out.n_bytes == 5 && out.max_bytes == 5 && strcmp((char *)out.data, "12345") == 0);
    lv_buffer_free(&out);
    CHECK_STATUS(lv_file_read(scratch("five"), 4, &out), LV_ELIMIT);
    CHECK(error_names("five", "4", NULL), "%s", lv_error());
    CHECK(!out.data);
    write_text("empty", "");
    CHECK_OK(lv_file_read(scratch("empty"), 0, &out));
    CHECK(out.n_bytes == 0 && out.data && out.data[0] == 0);
    lv_buffer_free(&out);
    CHECK_STATUS(lv_file_read(scratch("missing"), 9, &out), LV_ENOTFOUND);
    CHECK_STATUS(lv_file_read(scratch("five/x"), 9, &out), LV_ENOTFOUND);
    CHECK_STATUS(lv_file_read(scratch_dir, 9, &out), LV_EIO);
    CHECK(error_names(scratch_dir, "directory", NULL), "%s", lv_error());
}

static void nothing(int signal_number) {
    (void)signal_number;
}

#define N_PIPED 200000

// Small pieces with signals in between: short reads and EINTR.
static void *feed(void *arg) {
    const int *ends = arg;
    pthread_t reader;
    memcpy(&reader, ends + 2, sizeof reader);
    for (int i = 0; i < N_PIPED; i += 1000) {
        char piece[1000];
        memset(piece, 'a' + i / 1000 % 26, sizeof piece);
        if (write(ends[1], piece, sizeof piece) != (ssize_t)sizeof piece) {
            break;
        }
        pthread_kill(reader, SIGUSR1);
        if (i % 20000 == 0) {
            usleep(1000);
        }
    }
    close(ends[1]);
    return NULL;
}

static void test_stream(size_t max_bytes, lv_status want) {
    struct sigaction action = {.sa_handler = nothing}; // without SA_RESTART
    sigaction(SIGUSR1, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    int ends[8] = {0};
    pthread_t self = pthread_self(), thread;
    CHECK(pipe(ends) == 0);
    memcpy(ends + 2, &self, sizeof self);
    CHECK(pthread_create(&thread, NULL, feed, ends) == 0);
    lv_buffer out;
    CHECK_STATUS(lv_stream_read(ends[0], "standard input", max_bytes, &out), want);
    close(ends[0]);
    pthread_join(thread, NULL);
    if (want == LV_OK) {
        CHECK(out.n_bytes == N_PIPED);
        for (int i = 0; i < N_PIPED; i += 1000) {
            CHECK(out.data[i] == 'a' + i / 1000 % 26 && out.data[i + 999] == out.data[i]);
        }
    } else {
        CHECK(error_names("standard input", NULL) && !out.data, "%s", lv_error());
    }
    lv_buffer_free(&out);
}

static void test_map(void) {
    lv_mapping mapping;
    write_text("five", "12345");
    CHECK_OK(lv_file_map(scratch("five"), &mapping));
    CHECK(mapping.n_bytes == 5 && memcmp(mapping.data, "12345", 5) == 0);
    char copy[8] = "........";
    lv_mapped_copy(copy, mapping.data + 1, 4);
    lv_mapped_copy(copy + 4, "heap", 3);
    CHECK(memcmp(copy, "2345hea.", 8) == 0, "%.8s", copy);
    lv_file_unmap(&mapping);
    CHECK(!mapping.data);
    lv_file_unmap(&mapping);
    write_text("empty", "");
    CHECK_STATUS(lv_file_map(scratch("empty"), &mapping), LV_EFORMAT);
    CHECK_STATUS(lv_file_map(scratch_dir, &mapping), LV_EIO);
    CHECK_STATUS(lv_file_map(scratch("missing"), &mapping), LV_ENOTFOUND);
}

static int count_files(void) {
    char command[128], line[32] = "";
    snprintf(command, sizeof command, "ls '%s' | wc -l", scratch_dir);
    FILE *pipe = popen(command, "r");
    CHECK(pipe && fgets(line, sizeof line, pipe));
    pclose(pipe);
    return atoi(line);
}

static void test_write(void) {
    lv_buffer out;
    int n_before = count_files();
    CHECK_OK(lv_file_write_atomic(scratch("written"), "old text", 8));
    CHECK_OK(lv_file_write_atomic(scratch("written"), "new", 3));
    CHECK_OK(lv_file_read(scratch("written"), 99, &out));
    CHECK(strcmp((char *)out.data, "new") == 0);
    lv_buffer_free(&out);
    CHECK(count_files() == n_before + 1);
    for (int i = 0; i < 9; i++) { // what a killed process of this number left
        char left[64];
        snprintf(left, sizeof left, "written.%ld.%d.tmp", (long)getpid(), i);
        write_text(left, "");
    }
    CHECK_OK(lv_file_write_atomic(scratch("written"), "newer", 5));
    CHECK(count_files() == n_before + 10);
    n_before += 9;
    make_folder("folder");
    CHECK_STATUS(lv_file_write_atomic(scratch("folder"), "x", 1), LV_EIO);
    CHECK(count_files() == n_before + 2, "a failure leaves no temporary file");
    CHECK_STATUS(lv_file_write_atomic(scratch("no/such"), "x", 1), LV_ENOTFOUND);
    char name[256];
    memset(name, 'n', 255);
    name[255] = 0;
    CHECK_OK(lv_file_write_atomic(scratch(name), "as long as can be", 17));
    CHECK(count_files() == n_before + 3);
}

static void test_npy_layout(void) {
    // The bytes that np.save of numpy 1.24 writes for np.array([[1, 2, 3], [4, 5, 6]], np.int32).
    static const char head[] = "\x93NUMPY\x01\x00v\x00{'descr': '<i4', 'fortran_order': False, "
                               "'shape': (2, 3), }";
    int32_t values[] = {1, 2, 3, 4, 5, 6};
    lv_tensor tensor = {.data = values, .dtype = LV_I32, .n_dims = 2, .dims = {2, 3}};
    lv_buffer out;
    CHECK_OK(lv_npy_save(scratch("a.npy"), &tensor));
    CHECK_OK(lv_file_read(scratch("a.npy"), 4096, &out));
    CHECK(out.n_bytes == 128 + sizeof values && memcmp(out.data, head, sizeof head - 1) == 0);
    CHECK(out.data[127] == '\n' && out.data[126] == ' ');
    CHECK(memcmp(out.data + 128, values, sizeof values) == 0);
    lv_buffer_free(&out);
    tensor.n_dims = 1;
    CHECK_OK(lv_npy_save(scratch("a.npy"), &tensor));
    CHECK_OK(lv_file_read(scratch("a.npy"), 4096, &out));
    CHECK(strstr((char *)out.data + 10, "'shape': (2,), }"), "%s", out.data + 10);
    lv_buffer_free(&out);
}

static void test_npy(void) {
    static const lv_dtype types[] = {LV_F32, LV_F16, LV_I64, LV_I32, LV_I8, LV_U8};
    uint8_t bytes[8 * 24];
    for (size_t i = 0; i < sizeof bytes; i++) {
        bytes[i] = (uint8_t)(i * 7);
    }
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        for (int n_dims = 0; n_dims <= 4; n_dims++) {
            lv_tensor in = {
                .data = bytes, .dtype = types[t], .n_dims = n_dims, .dims = {2, 3, 1, 4}};
            lv_tensor out;
            CHECK_OK(lv_npy_save(scratch("b.npy"), &in));
            CHECK_OK(lv_npy_load(scratch("b.npy"), 4096, &out));
            CHECK(out.dtype == in.dtype && out.n_dims == n_dims &&
                  memcmp(out.dims, in.dims, (size_t)n_dims * sizeof *in.dims) == 0);
            CHECK(out.data && memcmp(out.data, bytes, lv_tensor_bytes(&in)) == 0);
            free((void *)out.data);
        }
    }
    lv_tensor half = {.data = bytes, .dtype = LV_BF16, .n_dims = 1, .dims = {2}}, out;
    CHECK_STATUS(lv_npy_save(scratch("c.npy"), &half), LV_EUNSUPPORTED);
    CHECK_STATUS(lv_npy_load(scratch("b.npy"), 16, &out), LV_ELIMIT);
    write_text("text", "not an array");
    CHECK_STATUS(lv_npy_load(scratch("text"), 4096, &out), LV_EFORMAT);
}

// A .npy file of `dict` and n_data zero bytes.
static void write_npy(const char *dict, size_t n_data) {
    char file[1024] = "\x93NUMPY\x01";
    size_t n = strlen(dict);
    file[8] = (char)n;
    memcpy(file + 10, dict, n);
    write_bytes("bad.npy", file, 10 + n + n_data);
}

static void test_npy_hostile(void) {
    static const char *const bad[] = {
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}",
        "{'descr': '<f2', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1, -1, -1)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387905,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999, 9999999999999)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1, 1, 1, 1, 1)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1",
        "{'descr': '<f4', 'fortran_order': False, 'shape': 1}",
        "{'descr': '<f4', 'fortran_order': False}",
        "{'descr': '<f4', 'shape': (1,)}",
        "{'fortran_order': False, 'shape': (1,)}",
        "{'descr'",
        "",
    };
    lv_tensor out;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_npy(bad[i], 4);
        CHECK_STATUS(lv_npy_load(scratch("bad.npy"), 4096, &out), LV_EFORMAT);
        CHECK(!out.data, "%s", bad[i]);
    }
    write_npy("{'descr': '<c8', 'fortran_order': False, 'shape': (1,)}", 8);
    CHECK_STATUS(lv_npy_load(scratch("bad.npy"), 4096, &out), LV_EUNSUPPORTED);
    write_npy("{'descr': '<f4', 'fortran_order': True, 'shape': (1,)}", 4);
    CHECK_STATUS(lv_npy_load(scratch("bad.npy"), 4096, &out), LV_EUNSUPPORTED);
    lv_tensor in = {.data = "abcdefgh", .dtype = LV_F32, .n_dims = 1, .dims = {2}};
    lv_buffer whole;
    CHECK_OK(lv_npy_save(scratch("d.npy"), &in));
    CHECK_OK(lv_file_read(scratch("d.npy"), 4096, &whole));
    for (size_t n = 0; n < whole.n_bytes; n++) {
        write_bytes("bad.npy", whole.data, n);
        CHECK_STATUS(lv_npy_load(scratch("bad.npy"), 4096, &out), LV_EFORMAT);
    }
    lv_buffer_free(&whole);
}

int main(void) {
    scratch_open();
    test_buffer();
    test_read();
    test_stream(N_PIPED, LV_OK);
    test_stream(N_PIPED + 1, LV_OK);
    test_stream(N_PIPED - 1, LV_ELIMIT);
    test_map();
    test_write();
    test_npy_layout();
    test_npy();
    test_npy_hostile();
    return check_done();
}
