package petclinic;

import java.time.LocalDate;
import java.time.format.DateTimeParseException;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.regex.Pattern;

/** What somebody typed, and what is wrong with it. Pages show both when a form has to be filled in again. */
public final class Form {
    private final Map<String, String> values = new LinkedHashMap<>();
    private final Map<String, String> problems = new LinkedHashMap<>();

    Form(Map<String, String> values) {
        this.values.putAll(values);
    }

    public String value(String field) {
        return values.getOrDefault(field, "");
    }

    /** What is wrong with a field; empty when nothing is. */
    public String problem(String field) {
        return problems.getOrDefault(field, "");
    }

    boolean valid() {
        return problems.isEmpty();
    }

    /** A text that must be there and must fit into the database. */
    String text(String field, int maxLength) {
        String text = value(field).strip();
        if (text.isEmpty()) {
            problems.put(field, "must not be empty");
        } else if (text.length() > maxLength) {
            problems.put(field, "must not be longer than " + maxLength + " characters");
        }
        return text;
    }

    /** A text that must look like something. */
    String text(String field, Pattern pattern, String otherwise) {
        String text = value(field).strip();
        if (!pattern.matcher(text).matches()) {
            problems.put(field, otherwise);
        }
        return text;
    }

    /** A day that is not after the latest one allowed, and not before 1900. */
    LocalDate date(String field, LocalDate latest) {
        try {
            LocalDate date = LocalDate.parse(value(field).strip());
            if (date.isAfter(latest)) {
                problems.put(field, "must not be after " + latest);
            } else if (date.getYear() < 1900) {
                problems.put(field, "must not be before 1900");
            }
            return date;
        } catch (DateTimeParseException malformed) {
            problems.put(field, "must be a date such as 2024-05-31");
            return latest;
        }
    }

    /** One of the choices that the page offered. */
    PetType choice(String field, Iterable<PetType> choices) {
        for (PetType choice : choices) {
            if (Integer.toString(choice.id()).equals(value(field))) {
                return choice;
            }
        }
        problems.put(field, "must be chosen from the list");
        return new PetType(0, "");
    }
}
