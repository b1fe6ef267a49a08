# The programs over their real command line: python3 with nothing but its standard library.
find_package(Python3 COMPONENTS Interpreter)
if(Python3_FOUND)
  foreach(part options inputs output folders schema checkpoints pull install bench)
    add_test(NAME cli_${part} COMMAND ${Python3_EXECUTABLE} -B ${CMAKE_CURRENT_LIST_DIR}/test_${part}.py)
    set_tests_properties(cli_${part} PROPERTIES LABELS cli TIMEOUT 900
      FIXTURES_REQUIRED golden ENVIRONMENT
      "DESCRIBE=$<TARGET_FILE:describe>;BENCH=$<TARGET_FILE:llava-bench>;LV_SOURCE=${PROJECT_SOURCE_DIR};LV_BUILD=${CMAKE_BINARY_DIR};LV_TINY=${golden_dir};LV_SANITIZE=${LV_SANITIZE}")
  endforeach()
endif()
