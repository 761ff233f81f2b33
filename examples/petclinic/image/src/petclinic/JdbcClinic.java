package petclinic;

import static java.util.stream.Collectors.groupingBy;
import static java.util.stream.Collectors.mapping;
import static java.util.stream.Collectors.toList;

import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.time.LocalDate;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.springframework.jdbc.core.JdbcTemplate;
import org.springframework.jdbc.support.GeneratedKeyHolder;
import org.springframework.jdbc.support.KeyHolder;
import org.springframework.stereotype.Repository;
import org.springframework.transaction.annotation.Transactional;

/** The clinic's records in SQL. A list of owners takes three queries however long it is. */
@Repository
@Transactional
class JdbcClinic implements Clinic {
    private static final String OWNER = "select id, first_name, last_name, address, city, telephone from owners o ";

    private final JdbcTemplate jdbc;

    JdbcClinic(JdbcTemplate jdbc) {
        this.jdbc = jdbc;
    }

    /** A row that belongs to another one. */
    private record Child<T>(int parent, T value) {
        static <T> Map<Integer, List<T>> byParent(List<Child<T>> children) {
            return children.stream().collect(groupingBy(Child::parent, mapping(Child::value, toList())));
        }
    }

    @Override
    @Transactional(readOnly = true)
    public List<Owner> owners(String lastName) {
        String prefix = lastName.toLowerCase().replace("!", "!!").replace("%", "!%").replace("_", "!_") + "%";
        return load("where lower(last_name) like ? escape '!'", prefix);
    }

    @Override
    @Transactional(readOnly = true)
    public Optional<Owner> owner(int id) {
        return load("where o.id = ?", id).stream().findFirst();
    }

    /** Owners with their pets and visits. The condition is one of this class's own, never a user's text. */
    private List<Owner> load(String condition, Object argument) {
        Map<Integer, List<Visit>> visits = Child.byParent(jdbc.query(
                "select v.id, v.pet_id, v.visit_date, v.description from visits v "
                        + "join pets p on p.id = v.pet_id join owners o on o.id = p.owner_id "
                        + condition + " order by v.visit_date desc, v.id desc",
                (row, number) -> new Child<>(row.getInt("pet_id"), visit(row)),
                argument));
        Map<Integer, List<Pet>> pets = Child.byParent(jdbc.query(
                "select p.id, p.name, p.birth_date, p.owner_id, t.id as type_id, t.name as type_name from pets p "
                        + "join types t on t.id = p.type_id join owners o on o.id = p.owner_id "
                        + condition + " order by p.name, p.id",
                (row, number) -> new Child<>(row.getInt("owner_id"), pet(row, visits)),
                argument));
        return jdbc.query(
                OWNER + condition + " order by last_name, first_name, id", (row, number) -> owner(row, pets), argument);
    }

    private static Visit visit(ResultSet row) throws SQLException {
        return new Visit(row.getInt("id"), row.getObject("visit_date", LocalDate.class), row.getString("description"));
    }

    private static Pet pet(ResultSet row, Map<Integer, List<Visit>> visits) throws SQLException {
        int id = row.getInt("id");
        PetType type = new PetType(row.getInt("type_id"), row.getString("type_name"));
        LocalDate birthDate = row.getObject("birth_date", LocalDate.class);
        return new Pet(id, row.getString("name"), birthDate, type, visits.getOrDefault(id, List.of()));
    }

    private static Owner owner(ResultSet row, Map<Integer, List<Pet>> pets) throws SQLException {
        int id = row.getInt("id");
        return new Owner(
                id,
                row.getString("first_name"),
                row.getString("last_name"),
                row.getString("address"),
                row.getString("city"),
                row.getString("telephone"),
                pets.getOrDefault(id, List.of()));
    }

    @Override
    public int addOwner(Owner owner) {
        KeyHolder key = new GeneratedKeyHolder();
        jdbc.update(
                connection -> {
                    PreparedStatement insert = connection.prepareStatement(
                            "insert into owners (first_name, last_name, address, city, telephone) "
                                    + "values (?, ?, ?, ?, ?)",
                            new String[] {"id"});
                    insert.setString(1, owner.firstName());
                    insert.setString(2, owner.lastName());
                    insert.setString(3, owner.address());
                    insert.setString(4, owner.city());
                    insert.setString(5, owner.telephone());
                    return insert;
                },
                key);
        return key.getKey().intValue();
    }

    @Override
    public void updateOwner(Owner owner) {
        jdbc.update(
                "update owners set first_name = ?, last_name = ?, address = ?, city = ?, telephone = ? where id = ?",
                owner.firstName(),
                owner.lastName(),
                owner.address(),
                owner.city(),
                owner.telephone(),
                owner.id());
    }

    @Override
    public void addPet(int ownerId, String name, LocalDate birthDate, int typeId) {
        jdbc.update(
                "insert into pets (name, birth_date, type_id, owner_id) values (?, ?, ?, ?)",
                name,
                birthDate,
                typeId,
                ownerId);
    }

    @Override
    public void addVisit(int petId, LocalDate date, String description) {
        jdbc.update(
                "insert into visits (pet_id, visit_date, description) values (?, ?, ?)", petId, date, description);
    }

    @Override
    @Transactional(readOnly = true)
    public List<PetType> petTypes() {
        return jdbc.query(
                "select id, name from types order by name",
                (row, number) -> new PetType(row.getInt("id"), row.getString("name")));
    }

    @Override
    @Transactional(readOnly = true)
    public List<Vet> vets() {
        Map<Integer, List<String>> specialties = Child.byParent(jdbc.query(
                "select vet_id, name from vet_specialties order by name",
                (row, number) -> new Child<>(row.getInt("vet_id"), row.getString("name"))));
        return jdbc.query("select id, first_name, last_name from vets order by last_name, first_name", (row, number) -> {
            int id = row.getInt("id");
            return new Vet(
                    id,
                    row.getString("first_name"),
                    row.getString("last_name"),
                    specialties.getOrDefault(id, List.of()));
        });
    }

    @Override
    @Transactional(readOnly = true)
    public void ping() {
        jdbc.queryForObject("select count(*) from types", Integer.class);
    }
}
