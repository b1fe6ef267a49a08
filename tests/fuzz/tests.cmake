# lv_fuzz(name corpus libs...): fuzz/fuzz_<name>.c, which defines LLVMFuzzerTestOneInput. It becomes a
# test that replays the corpus (a file or folder under tests/) and some thousand mutations of it.
# With clang, -DLV_SANITIZE=ON and -DLV_FUZZ=ON there is a real fuzzer as well:
#   build/tests/fuzzer_image -max_total_time=300 NEW_FOLDER tests/images
option(LV_FUZZ "Build libFuzzer programs (needs clang and LV_SANITIZE)" OFF)
if(LV_FUZZ)
  target_compile_options(lv_settings INTERFACE -fsanitize=fuzzer-no-link)
endif()

function(lv_fuzz name corpus)
  add_executable(fuzz_${name} fuzz/fuzz_${name}.c fuzz/replay.c)
  target_link_libraries(fuzz_${name} PRIVATE ${ARGN})
  target_compile_definitions(fuzz_${name} PRIVATE LV_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  set_target_properties(fuzz_${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  add_test(NAME fuzz_${name}
    COMMAND fuzz_${name} -n 3000 ${CMAKE_CURRENT_SOURCE_DIR}/${corpus})
  set_tests_properties(fuzz_${name} PROPERTIES LABELS fuzz TIMEOUT 300)
  if(LV_FUZZ)
    add_executable(fuzzer_${name} fuzz/fuzz_${name}.c)
    target_link_libraries(fuzzer_${name} PRIVATE ${ARGN})
    target_compile_definitions(fuzzer_${name} PRIVATE LV_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
    target_link_options(fuzzer_${name} PRIVATE -fsanitize=fuzzer)
    set_target_properties(fuzzer_${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  endif()
endfunction()

lv_fuzz(image images lv_preprocess)
lv_fuzz(tokenizer data/tokenizer lv_llm)
lv_fuzz(schema data/schema lv_llm)
lv_fuzz(checkpoint data/checkpoint lv_core)
